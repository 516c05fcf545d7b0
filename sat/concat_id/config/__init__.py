"""Configuration: its schema, the YAML files and command lines that fill it, and what is known of the original's files."""
