"""What Sphinx does not do for our docstrings: links, and the fields of attrs classes.

- A name in single backticks becomes a link if it is a public name, or a member of one; else it is
  code. ``Class.member`` of a public class must exist.
- Signatures and fields show their types as the source has them, so that the name of a type alias
  stays a name; and the values of their defaults.
"""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
from docutils import nodes
from docutils.nodes import Element, Node, system_message
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.domains.python import PyXRefRole
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode
from sphinx.util.typing import ExtensionMetadata, stringify_annotation

PACKAGE = "midapi_async"
# Made by the package and never by its user: how to call these classes is of no interest.
GIVEN = frozenset({
    "Accepted", "Asked", "Audit", "Batch", "BatchItem", "BatchProgress", "Call", "CalledBack",
    "Changes", "ClientStats", "Event", "Expected", "Failed", "Files", "Finished", "HasTaskId",
    "ImageFields", "Intent", "Intents", "Journal", "JournalContract", "Ledger", "Looked",
    "Progress", "Queued", "ResultFile", "Retrying", "RowFilter", "Rule", "Sent",
    "SharedJournalContract", "TaskDetails", "TaskHandle", "Untaken",
})  # fmt: skip
# So many arguments that only their descriptions help; each shows its default.
LONG = frozenset({"Strings"})
# A type of which only what it stands for is documented.
STANDS_FOR = {f"{PACKAGE}.sandbox._thread.SandboxOptions": f"{PACKAGE}.sandbox.Sandbox"}


class NameRole(PyXRefRole):
    """The role of single backticks in a docstring."""

    def run(self) -> tuple[list[Node], list[system_message]]:
        """Make a reference that may turn out to be none."""
        self.name, self.refdomain, self.reftype = "py:obj", "py", "obj"
        self.classes = ["xref", "py", "py-obj"]
        made = self.create_xref_node()
        for node in made[0]:
            node["is_name"] = True
        return made


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element
) -> nodes.reference | Element | None:
    """Where a name leads that Sphinx does not find; the plain text if nowhere.

    None, and so a warning, for a type or a member of this package that is not documented.
    """
    if node.get("refdomain") != "py":
        return None
    target = STANDS_FOR.get(node["reftarget"], node["reftarget"])
    objects = env.domains.python_domain.objects
    module = node.get("py:module") or PACKAGE
    for name in _candidates(target, module, objects):
        if name in objects:
            found = objects[name]
            page = str(node.get("refdoc", env.docname))
            return make_refnode(app.builder, page, found.docname, found.node_id, [text], name)
    if node.get("is_name"):
        owner = target.rpartition(".")[0]
        is_member = any(name in objects for name in _candidates(owner, module, objects))
        return None if owner and is_member else text
    is_type_variable = re.fullmatch(r"Ts?", target.rpartition(".")[2]) is not None
    return None if target.startswith(f"{PACKAGE}.") and not is_type_variable else text


def _candidates(target: str, module: str, objects: Mapping[str, object]) -> list[str]:
    """The full names that a name may stand for, the most likely first."""
    if not target:
        return []
    first = target.partition(".")[0]
    found = [target, f"{module}.{target}", f"{PACKAGE}.{target}"]
    if first[:1].isupper():  # a class of another module; a function's name is often a plain word
        found += [name for name in objects if name.endswith(f".{target}")]
    return found


# ─── docstrings ──────────────────────────────────────────────────────────────────────────────────

# Napoleon takes "Whether it is over: it failed" for a type and a description.
_COLON, _NO_COLON = ":", "\N{RATIO}"


def hide_colon(
    _app: Sphinx, what: str, _name: str, _documented: object, _options: object, lines: list[str]
) -> None:
    """Keep the colon in the first sentence of a property from napoleon."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(_COLON, _NO_COLON)


def finish(
    _app: Sphinx, what: str, _name: str, documented: object, _options: object, lines: list[str]
) -> None:
    """Change what napoleon has made of a docstring."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = lines[0].replace(_NO_COLON, _COLON)
    if what == "data" and lines and lines[0] in (type(documented).__doc__ or ""):
        # Not the docstring of dict, of tuple or of unions.
        is_table = isinstance(documented, Mapping | tuple | frozenset)
        names = [f"``{each}``" for each in documented] if is_table else []  # type: ignore[attr-defined]
        lines[:] = [f"One of {', '.join(names)}."] if names else []
    if what == "method":
        lines[:] = [line for line in lines if "misnamed" not in line]
    if what in ("class", "exception") and isinstance(documented, type):
        lines[:] = _with_fields(what, documented, lines)


def _with_fields(what: str, documented: type, lines: list[str]) -> list[str]:
    """The lines with the type and the default of each field that napoleon has found."""
    written: list[str] = []
    for line in lines:
        written.append(line)
        if (found := re.fullmatch(r"\.\. attribute:: (\w+)", line)) is None:
            continue
        for owner in documented.__mro__:
            annotation = inspect.get_annotations(owner).get(found[1])
            if annotation is not None:
                written.append(f"   :type: {_type(annotation)}")
                break
        field = attrs.fields_dict(documented).get(found[1]) if attrs.has(documented) else None
        is_given = what == "exception" or documented.__name__ in GIVEN
        default = "" if field is None or is_given else _value(field.default)
        if default:
            written.append(f"   :value: {default}")
    return written


# ─── signatures ──────────────────────────────────────────────────────────────────────────────────


def signature_of(
    _app: Sphinx,
    what: str,
    name: str,
    documented: Any,  # noqa: ANN401  # whatever has a docstring
    _options: object,
    given: str | None,
    _: str | None,
) -> tuple[str, str | None] | None:
    """The signature of a function or a class, with the types of its source."""
    if what not in ("class", "exception", "function", "method") or given is None:
        return None
    if what in ("class", "exception") and (
        name.rpartition(".")[2] in {*GIVEN, *LONG}
        or issubclass(documented, enum.Enum | BaseException)
    ):
        return "", None
    try:
        made = inspect.signature(documented)
    except (TypeError, ValueError):
        return None
    fields = attrs.fields_dict(documented) if attrs.has(documented) else {}
    parameters = []
    for index, each in enumerate(made.parameters.values()):
        is_owner = what == "method" and not index and each.name in ("self", "cls")
        if is_owner or each.annotation == "Never":  # which only makes an error more helpful
            continue
        changes: dict[str, Any] = {}
        if each.annotation is not each.empty:
            changes["annotation"] = _Source(_type(each.annotation))
        if each.default is not each.empty:
            default = fields[each.name].default if each.name in fields else each.default
            changes["default"] = _Source(_value(default))
        parameters.append(each.replace(**changes))
    shown = inspect.Signature(parameters, return_annotation=made.empty)
    returned = made.return_annotation
    no_return = what not in ("function", "method") or returned in (made.empty, None, "None")
    return str(shown), None if no_return else _type(returned)


class _Source:
    """A piece of source, which a signature shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _type(annotation: object) -> str:
    if not isinstance(annotation, str):
        text = stringify_annotation(annotation, "smart", short_literals=True)
        return re.sub(r"~?(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text)
    # A type that is named in quotes, because it is defined further down.
    return annotation.strip("'\"")


def _value(default: object) -> str:
    """A default as source; "" for none, "..." for one that a factory makes."""
    if default is attrs.NOTHING:
        return ""
    if (made_by := getattr(default, "factory", None)) is not None:
        return "{}" if made_by is dict else "..."
    if isinstance(default, enum.Enum):
        return f"{type(default).__name__}.{default.name}"
    if default is ...:
        return "..."
    if attrs.has(type(default)):
        with suppress(TypeError):  # it has fields without a default
            return f"{type(default).__name__}()" if default == type(default)() else repr(default)
    return repr(default)


# ─── pages ───────────────────────────────────────────────────────────────────────────────────────


def mend_html(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _tree: object
) -> None:
    """Mend what confuses a screen reader: headings without a level, lists without terms."""
    menu = str(context.get("furo_navigation_tree", ""))
    levelled = menu.replace('role="heading"', 'role="heading" aria-level="2"')
    context["furo_navigation_tree"] = levelled
    # The lines of a long signature are a list of descriptions to Sphinx.
    context["body"] = re.sub(
        r'<dt class="sig .*?</dt>',
        lambda found: re.sub(r"<(/?)d[ld]>", r"<\1span>", found[0]).replace(
            "<span><em", '<span class="sig-line"><em'
        ),
        str(context.get("body", "")).replace("> -- ", "> – "),
        flags=re.DOTALL,
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add all of this to Sphinx."""
    app.add_role("name", NameRole(warn_dangling=False))
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-docstring", hide_colon, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", finish, priority=600)
    app.connect("autodoc-process-signature", signature_of)
    app.connect("html-page-context", mend_html, priority=900)  # after furo
    return {"parallel_read_safe": True, "parallel_write_safe": True}
