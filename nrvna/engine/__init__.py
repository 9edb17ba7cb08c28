"""The engine: many requests, one model, one batch a step. A process of its own: ``python -m nrvna.engine``."""
