"""What can go wrong, as types: the text says what happened, with numbers, and what to do next."""

from __future__ import annotations


class NanochatError(Exception):
    """Root of every error that a user can meet. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(NanochatError):
    """A value that the user gave is outside its range; the text names the range."""

    exit_code = 2


class OutputFailed(NanochatError):
    """Standard output cannot be written, such as a file on a full disk."""


class SettingsError(UsageError):
    """A settings file that is no TOML, or a value in it outside its range; the text names file, key and range."""


class InvalidSampling(UsageError, ValueError):
    """A sampling parameter, or another value of a request, is outside its range."""


class EmptyPrompt(UsageError, ValueError):
    """A prompt without a single token."""


class ModelError(NanochatError):
    """Something is wrong with a model on disk."""

    exit_code = 3


class ModelNotFound(ModelError):
    """No model of this name or path is on this machine."""


class InvalidModel(ModelError):
    """A model folder whose config, tokenizer or weights are missing, damaged or contradict each other."""


class InvalidTemplate(ModelError):
    """A chat template that is missing, does not compile, fails on this chat, or goes beyond its limits."""


class ChatRejected(UsageError, ValueError):
    """A list of messages that the model's chat template does not take; the text holds the template's reason."""


class UnsupportedModel(ModelError):
    """A model that this engine does not run: architecture, quantization or pickle-only weights."""


class DownloadError(NanochatError):
    """A download failed; what was already fetched is kept where that is safe."""

    exit_code = 4


class Offline(DownloadError):
    """The network, the hub or the package index does not answer."""


class AccessDenied(DownloadError):
    """A gated or private model: no token, licence not accepted, or a token that is not valid."""


class ContextOverflow(NanochatError):
    """A prompt (or prompt and reply) that is longer than the context allows."""

    exit_code = 5


class OutOfMemory(NanochatError):
    """Weights, KV cache or a step that does not fit in the memory that is free."""

    exit_code = 6


class InvalidLogits(NanochatError):
    """The model produced NaN or Inf; the request was ended and nothing of it was cached."""

    exit_code = 7


class EngineDead(NanochatError):
    """The engine stopped; a fresh load is needed. The text holds the cause."""

    exit_code = 8


class HistoryError(NanochatError):
    """The chats on disk cannot be opened, migrated or written."""

    exit_code = 9


class HistoryFull(HistoryError):
    """No space is left for the chats; nothing that was saved before is lost."""


class HistoryReadOnly(HistoryError):
    """The folder or the file of the chats may not be written, or its file system cannot lock files."""


class HistoryLocked(HistoryError):
    """Another process holds the chats for longer than we wait."""


class HistoryDamaged(HistoryError):
    """The file of the chats is damaged, or is no file of ours; it is left exactly as it was found."""


class HistoryTooNew(HistoryError):
    """A newer nanochat wrote these chats; this one does not touch them."""


class ChatNotFound(HistoryError):
    """No chat, message or running reply of this id."""

    exit_code = UsageError.exit_code  # the chats themselves are well


class ChatImportError(HistoryError):
    """A file of chats that cannot be read whole; nothing of it was imported."""

    exit_code = UsageError.exit_code  # the file is the user's, and the chats themselves are well
