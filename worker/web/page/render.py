"""The templates. Every text that one prints is escaped for HTML, and shows what hides in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from worker.web.page import plots
from worker.web.page.text import FILTERS, command, finalize
from worker.web.page.visit import View

#: In place of the CSRF token, so that sessions share what was rendered. It is replaced when a response is sent.
CSRF_MARK = "csrf-of-this-session"


@dataclass
class Rendered:
    """A rendered page.

    Attributes:
        html: the whole page.
        regions: the parts that change while it is open, by name.
    """

    html: str
    regions: dict[str, str] = field(default_factory=dict)


class Templates:
    """Renders the templates of the page.

    Args:
        views: the views, for addresses and navigation.
        version: version of the static files.
    """

    def __init__(self, views: tuple[View, ...], version: str) -> None:
        self._paths = {view.name: view.path for view in views}
        self._version = version
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            finalize=finalize,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(FILTERS)
        self._environment.globals.update(command=command, plots=plots, views=views, csrf=CSRF_MARK)

    def compile(self) -> None:
        """Compile all templates."""
        for name in self._environment.list_templates():
            self._environment.get_template(name)

    def render(self, template: str, root: str, roles: frozenset[str], values: Mapping[str, Any]) -> Rendered:
        """Render a template.

        Args:
            template: name of the file.
            root: the prefix under which the application is mounted.
            roles: the roles of the visitor, for `may("operate")`.
            values: the values of the template.
        """
        rendered = Rendered("")

        def region(name: str, caller: Callable[[], str]) -> Markup:
            rendered.regions[name] = str(caller())
            return Markup('<div class="region" id="region-{}" data-region>{}</div>').format(
                name,
                Markup(rendered.regions[name]),  # noqa: S704 - the template has escaped it
            )

        rendered.html = self._environment.get_template(template).render(
            values,
            region=region,
            url=lambda name, **parameters: self.make_url(root, name, parameters),
            order_url=lambda name: f"{root}/page/orders/{name}",
            command_url=lambda name: f"{root}/page/commands/{name}",
            static=lambda name: f"{root}/page/static/{self._version}/{name}",
            root=root,
            may=lambda role: role in roles,
            now=datetime.now(UTC),
        )
        return rendered

    def make_url(self, root: str, name: str, parameters: Mapping[str, Any]) -> str:
        """Return the address of a view. Parameters that its path does not have become the query."""
        path, rest = self._paths[name], {}
        for key, value in parameters.items():
            if "{" + key + "}" in path:
                path = path.replace("{" + key + "}", quote(str(value), safe=""))
            elif value not in (None, ""):
                rest[key] = value
        return root + path + ("?" + urlencode(rest) if rest else "")
