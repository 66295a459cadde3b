"""A run's config: from YAML and overrides to a checked `Config`."""
