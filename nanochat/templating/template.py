"""Chat templates: Jinja from outside, rendered as Transformers does, in its sandbox, with limits.

The environment is the one of Transformers' `apply_chat_template` (utils/chat_template_utils.py, 5.23), so that
the text is equal to the byte; what a template may spend is in `meter.py`. Transformers itself is not
imported: that takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from threading import Lock
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from nanochat.errors import ChatRejected, InvalidTemplate
from nanochat.templating.bounds import formatted_size, method_bound, operator_bound
from nanochat.templating.filters import charged_filters, charged_tests
from nanochat.templating.meter import ITEM, Instrument, LimitReached, Meter

MAX_SOURCE = 256 * 1024  # characters; the longest template in use has about 30,000
MAX_OUTPUT = 4 * 2**20  # characters
MAX_UNITS = 256 * 2**20
MAX_SECONDS = 2.0


class _Raised(TemplateError):
    """The template itself refused the chat, with `raise_exception`."""


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks the model's own text for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own way

    def parse(self, parser: Parser) -> nodes.Node:
        """A call block, as in Transformers, so that its body has the same scope."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict(...)` for templates: makes dictionaries, and has no attributes of the real class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace(...)` without attributes that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no attribute {name!r}")


class _Environment(ImmutableSandboxedEnvironment):
    """Transformers' sandbox, where calls and operators are charged to a meter."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, meter: Meter) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.meter = meter
        self.now = datetime.now()
        self.filters = charged_filters(meter)
        self.tests = charged_tests(meter)
        del self.globals["lipsum"]  # makes random text
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": self._strftime_now,
            "dict": _Dict(),
            "namespace": _Namespace,
        }

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.spend(ITEM + meter.weigh((args, kwargs)))
        if isinstance(__obj, BuiltinMethodType):
            args = tuple(
                arg if hasattr(arg, "__len__") or not hasattr(arg, "__next__") else list(arg) for arg in args
            )
            given = (*args, *kwargs.values())
            meter.spend(method_bound(meter, cast("Any", __obj.__self__), __obj.__name__, given))
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, str):
            meter.spend(meter.weigh(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """One of the operators above, if its result is not too large."""
        self.meter.spend(operator_bound(self.meter, operator, left, right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` in jinja2's sandbox, if the result is not too large."""
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def charged(*args: Any, **kwargs: Any) -> str:
            self.meter.spend(formatted_size(self.meter, value.__self__, (*args, *kwargs.values())))
            return formatted(*args, **kwargs)

        return charged

    def _strftime_now(self, format: str) -> str:
        return self.now.strftime(format[:200])


def _raise(message: object) -> None:
    raise _Raised(str(message))


class Template:
    """One compiled chat template. Threads may share it; renderings take turns.

    Attributes:
        source: the Jinja text.
        variables: names that the template expects from outside (`enable_thinking`, `bos_token`, ...).
        literals: the pieces of text that the template can write itself.

    Raises:
        InvalidTemplate: it is too long or does not compile.
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise InvalidTemplate(
                f"The chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are read."
            )
        self.source = source
        self._lock = Lock()
        self._meter = Meter(MAX_UNITS, MAX_SECONDS)
        self._environment = _Environment(self._meter)
        try:
            tree = self._environment.parse(source)
            self.variables = frozenset(find_undeclared_variables(tree))
            self.literals = tuple(_literals(tree))
            tree = cast("nodes.Template", Instrument().visit(tree))
            tree.set_environment(self._environment)
            self._compiled = self._environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise InvalidTemplate(
                f"The chat template does not compile: line {error.lineno}: {error.message}"
            ) from error
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise InvalidTemplate(
                f"The chat template does not compile: {error or type(error).__name__}"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        now: datetime,
        variables: Mapping[str, Any],
    ) -> str:
        """The text of a chat. `messages` and `variables` hold plain strings, numbers, lists and dictionaries.

        Raises:
            ChatRejected: the template refuses these messages (`raise_exception`).
            InvalidTemplate: it fails on them, or spends more than `MAX_OUTPUT`, `MAX_UNITS` or `MAX_SECONDS`.
        """
        given = {"tools": None, "documents": None, **variables}
        with self._lock:
            self._meter.restart()
            self._environment.now = now
            try:
                return self._collect(
                    messages=list(messages), add_generation_prompt=add_generation_prompt, **given
                )
            except _Raised as error:
                raise ChatRejected(f"The model's chat template does not take this chat: {error}") from error
            except LimitReached as error:
                raise InvalidTemplate(f"The chat template was stopped: {error}") from error
            except RecursionError as error:
                raise InvalidTemplate("The chat template was stopped: it calls itself without end") from error
            except Exception as error:  # whatever Python raises for what a template does
                raise InvalidTemplate(
                    f"The chat template fails on this chat: {type(error).__name__}: {str(error)[:300]}"
                ) from error

    def _collect(self, **variables: Any) -> str:
        pieces: list[str] = []
        length = 0
        for piece in self._compiled.generate(**variables):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise LimitReached(f"it writes more than {MAX_OUTPUT:,} characters")
            pieces.append(piece)
        return "".join(pieces)


def _literals(tree: nodes.Template) -> list[str]:
    """Texts in a template: between its tags, and in quotes."""
    data = [node.data for node in tree.find_all(nodes.TemplateData)]
    quoted = [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return data + quoted
