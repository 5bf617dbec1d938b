"""Settings: the schema, reading and writing TOML, the built-in configs, and the reference generated from the schema."""
