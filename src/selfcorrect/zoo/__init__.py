"""The bundled models, and the lookup of a model by name."""
