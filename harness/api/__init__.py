"""What `import fermarsi` offers: the commands as functions, and configs made in Python."""
