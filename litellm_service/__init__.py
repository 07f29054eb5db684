"""The model service: LiteLLM's proxy with the bundled models, in an environment of its own.

The only place that imports litellm. `vectors`, `sentences` and `extractive` do not, so the application's tests can
import them without that environment.
"""
