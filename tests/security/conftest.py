"""The agent of these tests works in the same database as the integration tests."""

from __future__ import annotations

from tests.integration.conftest import nothing_is_left_of_other_files

__all__ = ["nothing_is_left_of_other_files"]
