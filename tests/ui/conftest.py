"""What every test of the screen does first."""

from __future__ import annotations

from quick_stylesheets import quicken

quicken()
