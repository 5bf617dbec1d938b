"""Settings: their schema, TOML in and out, the built-in configurations, and the reference that is made from them."""
