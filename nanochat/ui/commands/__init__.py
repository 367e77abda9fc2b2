"""Everything that the user can do, by topic; together the one registry."""

from __future__ import annotations

from nanochat.ui.actions import Registry
from nanochat.ui.commands import chats, editing, replies, settings, tabs, views

REGISTRY = Registry(
    (*replies.ACTIONS, *editing.ACTIONS, *tabs.ACTIONS, *chats.ACTIONS, *settings.ACTIONS, *views.ACTIONS)
)
"""All actions, in the order of the help."""
