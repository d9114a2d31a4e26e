"""The routes of the differential test on Django, by path(), by re_path() and without case; see routing_fastapi.py."""

from pathlib import Path

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.static import serve

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="for tests only",
    ROOT_URLCONF=__name__,
    APPEND_SLASH=True,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
)

runs = 0


def handler(name):
    @csrf_exempt
    def view(request, *_, **__):
        global runs
        runs += name == "gated"
        return JsonResponse({"handler": name, "runs": runs}, headers={"X-Handler": name})

    return view


gated = handler("gated")
api = [
    path("crm", gated),
    path("crm/items", gated),
    path("crm/items/<str:item>", gated),
    path("crm/files/<path:name>", gated),
    path("crm/folder/", gated),
    path("crm/help/<path:page>", handler("open")),
    # `$` lets a line break at the end through, and `(?i)` takes U+212A for a k and U+017F for an s.
    re_path(r"^(?i:reports)$", gated),
    re_path(r"^accounts/(?P<account>[^/]*)/export/?$", gated),
    path("network/<path:rest>", handler("core")),
]
urlpatterns = [
    path("-/runs", handler("control")),
    path("api/v1/", include(api)),
    path("static/<path:path>", serve, {"document_root": Path(__file__).with_name("files")}),
    re_path(r"^(?s:.*)$", handler("other")),
]
app = get_wsgi_application()
