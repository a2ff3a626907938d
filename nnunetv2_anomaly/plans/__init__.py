"""Settings from plans.json, whole-image plans and memory estimates."""
