"""A signup with Django: the user and the run of the welcome mail are one transaction.

Django has connections of its own, so the SQL function `worker.enqueue` is called through its cursor.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote, urlsplit

import django
from django.conf import settings
from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse


def configure(database_url: str) -> None:
    """Configure Django in this process, without a project."""
    url = urlsplit(database_url)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.lstrip("/"),
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": url.hostname,
        "PORT": url.port,
    }
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=[], ALLOWED_HOSTS=["*"], USE_TZ=True)
    django.setup()


def enqueue(job: str, /, **arguments: Any) -> str:
    """Enqueue a job in the current transaction. Return the id of its run."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT worker.enqueue(%s, %s)", [job, json.dumps(arguments)])
        return str(cursor.fetchone()[0])


def sign_up(request: HttpRequest) -> JsonResponse:
    """Store a user, and enqueue the welcome mail."""
    name, email = request.POST["name"], request.POST["email"]
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO member (name, email) VALUES (%s, %s) RETURNING id", [name, email])
            member_id = cursor.fetchone()[0]
        run_id = enqueue("send_welcome_mail", user_id=member_id, name=name)
        if "@" not in email:
            raise ValueError("not a mail address")
    return JsonResponse({"member": member_id, "run": run_id})
