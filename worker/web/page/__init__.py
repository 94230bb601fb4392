"""The operator's page of `worker web`: server-rendered HTML, one stylesheet, small modules of JavaScript.

| file | holds |
| --- | --- |
| `site.py` | routing, and the answers: views, orders, login, static files, error pages |
| `views.py` | the table of views: path, template, loader, keys |
| `visit.py` | a request to a view: it reads through the operations of the API, and nothing else |
| `render.py` | the templates' environment: it escapes every text, also what hides in one (ANSI, bidi) |
| `text.py` | filters: numbers, durations, commands |
| `plots.py` | small plots as SVG |
| `session.py` | the session by token, and the CSRF token |
| `forms.py` | orders: a form becomes the body of an operation of the API |
| `links.py` | the links in the sentence that follows an order |
| `live.py` | one renderer for all pages that show the same |
| `assets.py` | static files |
| `form.py` | the fields that a form has sent |
| `argument_form.py` | the form of a job's arguments, made from their JSON Schema |
| `command_lines.py` | an order as lines of `worker`, `redis-cli` and `psql`: from the body that it would send |
| `story.py`, `sentences.py`, `attempts.py` | the line of time of a run, its events as sentences, its attempts |
| `overview.py`, `run.py`, `runs.py`, `jobs.py` | the loaders of views |
| `failures.py` | the loaders of dead letters, quarantine and outbox |
| `steering.py` | the loaders of cron lines, limits, events and orders |

To add a view:

1. Write a loader `async def load_NAME(visit: Visit) -> dict[str, Any]` in a module of its own. `await
   visit.read("list_runs", limit=50)` calls the operation of that name, with the parameters of its path and query. If
   the API lacks something, add it there first.
2. Write `templates/NAME.html`: `{% extends "base.html" %}`, blocks `title` and `main`. What changes while the page
   is open stands in `{% call region("rows") %}…{% endcall %}`: it is rendered again when something happens, and
   merged into the page, which keeps focus, selection and what was typed. Elements of lists have an `id`. Macros:
   `parts.html` (state, time, progress, figures, commands, orders), `list.html` (search, filters, selection, pages).
3. Add a line to `VIEWS`: `menu=` puts it into the navigation, `go=` is its key after `g`.
4. Orders are `{% call order("pause", {"targets": [run.id]}) %}Pause{% endcall %}` in `{% if may("operate") %}`: the
   name is that of the operation. Its form works without JavaScript; with it, the page stays. `ask` opens a dialog
   first. `data-key="p"` gives an element a key; `?` lists all of them. Each order can be shown as a command: by
   `lines=` of `order`, by `act` of `list.html`, or by `as_command` beside a button. A new operation needs a method in
   `command_lines.py`, which returns a line of `redis-cli`, or says why there is none. A form that shows its own
   faults is sent to the path of its view: `submit=` of the view takes it.
5. Neither a template nor a script has inline script or style: the Content-Security-Policy forbids both. Widths are
   attributes of SVG or `<progress>`. Texts need no care: whatever a template prints is escaped.
6. Tests are in `tests/web/page/`: the fixture `site` has a worker, a server and a browser; `site.open("/page/NAME")`
   opens the view, and fails if a script fails or the policy is violated; `site.check(page)` runs axe-core.
"""

from worker.web.page.site import Site

__all__ = ["Site"]
