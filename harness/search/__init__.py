"""Many runs of one config: sweeps and cross-validation."""
