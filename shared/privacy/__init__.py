"""What of a tenant's texts may leave for models, traces and logs: rules, and pseudonyms that come back."""

from shared.privacy.pseudonyms import Pseudonyms, Restorer, pseudonyms_for

__all__ = ["Pseudonyms", "Restorer", "pseudonyms_for"]
