"""Scripts that run inside other engines' environments: they know the standard library and one engine, not Paceline."""
