"""The open tabs with their unsent texts: each process saves its own, the next start takes over those of the
dead."""

from __future__ import annotations

from collections.abc import Sequence

from nanochat.storage.database import Database
from nanochat.storage.records import Tab, storable


class Tabs:
    """The tabs of this process. Any thread may call."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(self, tabs: Sequence[Tab]) -> None:
        """Replace what is saved of this process's tabs, in order. No fsync: cheap enough for every change.

        The unsent text of a tab with a chat is kept with the chat, so that it outlives the tab.
        """
        owner, now = self._database.owner.token, self._database.clock()
        with self._database.write(durable=False) as connection:
            connection.execute("DELETE FROM tabs WHERE owner = ?", (owner,))
            for position, tab in enumerate(tabs):
                connection.execute(
                    "INSERT INTO tabs (owner, position, chat, draft, active, saved) "
                    "SELECT ?, ?, (SELECT seq FROM chats WHERE id = ?), ?, ?, ?",
                    (owner, position, tab.chat, "" if tab.chat else storable(tab.draft), tab.active, now),
                )
                connection.execute(
                    "UPDATE chats SET draft = ? WHERE id = ? AND draft <> ?",
                    (storable(tab.draft), tab.chat, storable(tab.draft)),
                )

    def restore(self) -> tuple[Tab, ...]:
        """The tabs of every process that has ended, and from now on this one's; the latest session's first.

        A live process keeps its tabs: a second nanochat starts with none.
        """
        owner = self._database.owner.token
        with self._database.write(durable=False) as connection:
            alive = set(self._database.owner.others())  # inside: who took tabs over before this is among them
            rows = connection.execute(
                "SELECT t.owner, t.position, c.id, coalesce(c.draft, t.draft), t.active, t.chat, t.saved, "
                "t.chat IS NOT NULL AND c.deleted IS NOT NULL "
                "FROM tabs t LEFT JOIN chats c ON c.seq = t.chat ORDER BY t.owner = ? DESC, t.saved DESC, "
                "t.owner, t.position",
                (owner,),
            ).fetchall()
            mine = [row for row in rows if row[0] not in alive]
            connection.executemany("DELETE FROM tabs WHERE owner = ?", {(row[0],) for row in mine})
            tabs: list[Tab] = []
            seen: set[str] = set()
            for _, _, chat, draft, active, seq, saved, deleted in mine:
                if deleted:  # what was not sent in it stays
                    chat, seq = None, None
                if (chat in seen) or (chat is None and not draft and (tabs or deleted)):
                    continue
                seen.update(() if chat is None else (chat,))
                connection.execute(
                    "INSERT INTO tabs (owner, position, chat, draft, active, saved) VALUES (?, ?, ?, ?, ?, "
                    "?)",
                    (owner, len(tabs), seq, "" if chat else draft, active, saved),
                )
                tabs.append(Tab(chat, draft, bool(active) and not any(tab.active for tab in tabs)))
            return tuple(tabs)
