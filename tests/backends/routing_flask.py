"""The routes of the differential test on Flask; see routing_fastapi.py."""

from pathlib import Path

from flask import Blueprint, Flask, jsonify

app = Flask(__name__, static_folder=str(Path(__file__).with_name("files")), static_url_path="/static")
api = Blueprint("api", __name__, url_prefix="/api/v1")
runs = 0


def answer(handler):
    global runs
    runs += handler == "gated"
    response = jsonify(handler=handler, runs=runs)
    response.headers["X-Handler"] = handler
    return response


@app.get("/-/runs")
def count():
    return answer("control")


@api.route("/crm", methods=["GET", "POST"])
@api.route("/crm/items", methods=["GET", "POST"])
@api.route("/crm/items/<item>")
@api.route("/crm/files/<path:name>")
@api.route("/reports")
@api.route("/accounts/<account>/export")
# With a slash at its end Flask redirects to it, and answers both where strict_slashes is off.
@api.route("/crm/folder/", strict_slashes=False)
def gated(**_):
    return answer("gated")


@api.route("/crm/help/<path:page>")
def help_page(page):
    return answer("open")


@api.route("/network/<path:rest>")
def core(rest):
    return answer("core")


@app.route("/<path:rest>", methods=["GET", "POST", "PUT", "DELETE"])
def other(rest):
    return answer("other")


app.register_blueprint(api)
