"""From a model YAML to layers."""
