#!/usr/bin/env python3
"""Looks at dashboards as Grafana would, and at what their queries return.

    dashboards.py check PROMETHEUS_URL FILE...   fails if anything is wrong
    dashboards.py serve                          stands in for Grafana: its health, its login, what it was provisioned
                                                 with, and /check for all of that
"""
import base64
import glob
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = {"timeseries", "stat", "gauge", "bargauge", "table", "heatmap", "text", "row", "piechart", "state-timeline"}
BUILT_IN = {"__rate_interval": "1m", "__interval": "15s", "__range": "1h"}


def query(url, expression):
    """The series that Prometheus returns, or an error as text."""
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as refused:
        return json.load(refused).get("error", "refused")


def problems_of(board, url, sources):
    """What is wrong with one dashboard."""
    for key in ("title", "uid", "panels", "schemaVersion"):
        if key not in board:
            yield f"no {key}"
    if board.get("id") is not None:
        yield "a provisioned dashboard has no id"
    variables = {entry["name"]: entry for entry in board.get("templating", {}).get("list", [])}
    values = dict(BUILT_IN, **{name: ".*" for name in variables})
    numbers, taken = set(), set()
    for panel in board.get("panels", []):
        title = panel.get("title", "?")
        if panel.get("type") not in KINDS:
            yield f"{title}: unknown type {panel.get('type')}"
        if panel.get("id") in numbers:
            yield f"{title}: its id is taken"
        numbers.add(panel.get("id"))
        place = panel.get("gridPos", {})
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        if place["x"] + place["w"] > 24 or cells & taken:
            yield f"{title}: it overlaps another one, or runs over the edge"
        taken |= cells
        if panel.get("type") in ("text", "row"):
            continue
        if not panel.get("targets") or not panel.get("description"):
            yield f"{title}: no query, or no description"
        for target in panel.get("targets", []):
            source = (target.get("datasource") or panel.get("datasource") or {}).get("uid", "")
            name = source.strip("${}")
            if source.startswith("$"):
                if variables.get(name, {}).get("type") != "datasource":
                    yield f"{title}: there is no variable {source} for a data source"
            elif sources is not None and source not in sources:
                yield f"{title}: there is no data source {source}"
            expression = re.sub(r"\$\{?(\w+)\}?", lambda match: values.get(match[1], match[0]), target["expr"])
            if "$" in expression:
                yield f"{title}: unknown variable in {expression}"
                continue
            result = query(url, expression)
            if isinstance(result, str):
                yield f"{title}: {result} in {expression}"
            elif not result:
                yield f"{title}: no series for {expression}"


def provisioned():
    """Data sources, dashboards and problems of what Grafana is given."""
    import yaml

    base = os.environ.get("GF_PATHS_PROVISIONING", "/etc/grafana/provisioning")
    sources, boards, problems = [], {}, []
    for path in sorted(glob.glob(f"{base}/datasources/*.y*ml")):
        sources += yaml.safe_load(open(path))["datasources"]
    for path in sorted(glob.glob(f"{base}/dashboards/*.y*ml")):
        for provider in yaml.safe_load(open(path))["providers"]:
            found = sorted(glob.glob(provider["options"]["path"] + "/*.json"))
            if not found:
                problems.append(f"{path}: nothing in {provider['options']['path']}")
            for file in found:
                board = json.load(open(file))
                if board["uid"] in boards:
                    problems.append(f"{file}: its uid is taken")
                boards[board["uid"]] = board
    return sources, boards, problems


def everything():
    sources, boards, problems = provisioned()
    url = next((source["url"] for source in sources if source["type"] == "prometheus"), None)
    if not url:
        return boards, [*problems, "no data source of Prometheus"]
    uids = {source["uid"] for source in sources}
    for uid, board in boards.items():
        problems += [f"{uid}: {problem}" for problem in problems_of(board, url, uids)]
    return boards, problems


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/api/health":
            return self.answer(200, {"database": "ok", "version": "stands in for Grafana"})
        with open(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]) as file:
            login = base64.b64encode(f"admin:{file.read().strip()}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            return self.answer(401, {"message": "Unauthorized"})
        if self.path == "/api/datasources":
            return self.answer(200, provisioned()[0])
        if self.path == "/api/search":
            return self.answer(200, [{"uid": uid, "title": board["title"]} for uid, board in provisioned()[1].items()])
        if self.path == "/check":
            boards, problems = everything()
            return self.answer(500 if problems or not boards else 200, {"dashboards": len(boards), "problems": problems})
        return self.answer(404, {})

    def answer(self, status, content):
        body = json.dumps(content, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


def main():
    if sys.argv[1] == "serve":
        ThreadingHTTPServer(("", 3000), Handler).serve_forever()
    url, files = sys.argv[2], sys.argv[3:]
    problems, queries = [], 0
    for file in files:
        board = json.load(open(file))
        queries += sum(len(panel.get("targets", [])) for panel in board["panels"])
        problems += [f"{os.path.basename(file)}: {problem}" for problem in problems_of(board, url, None)]
    print("\n".join(problems) or f"{queries} queries of {len(files)} dashboards return series")
    sys.exit(bool(problems))


main()
