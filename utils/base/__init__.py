"""What everything stands on: log, paths, files, YAML, options, configuration, devices."""
