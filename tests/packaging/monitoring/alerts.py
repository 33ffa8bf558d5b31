"""Each alert's expression on a running server: alerts.py PROMETHEUS_URL rules.yml.

In order, an alert returns nothing. So each selector in it is asked for by itself: it must have series, or be one that
comes into being with the trouble that it counts.
"""
import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

url, path = sys.argv[1:]
# Made when they first count something, which a server in order does not do; why is beside each.
ONLY_IN_TROUBLE = {
    "myelin_rooms_state_resolution_failures_total": "counts failures",
    "myelin_tls_certificate_reloads_total": "counts changed files",
    "myelin_connections_refused_total": "counts connections that were sent away",
    "myelin_acme_waiting": "only with certificates by ACME",
}


def query(expression):
    try:
        address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=20) as answer:
            return json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as refused:
        return json.load(refused).get("error", "refused")


def expressions():
    """Alert names and their expressions, as the rules write them."""
    with urllib.request.urlopen(f"{url}/api/v1/rules", timeout=20) as answer:
        for group in json.load(answer)["data"]["groups"]:
            for rule in group["rules"]:
                yield rule["name"], rule["query"], rule["health"], rule["state"]


wrong, explained, seen = [], set(), 0
names = set(re.findall(r"- alert: (\w+)", open(path).read()))
for name, expression, health, state in expressions():
    names.discard(name)
    if health != "ok" or state == "firing":
        wrong.append(f"{name}: {health}, {state}")
    for selector in set(re.findall(r"\b(?:myelin_\w+|process_\w+|up)\{[^}]*\}", expression)):
        metric = selector.split("{")[0]
        # A server in order has no answers of 500, but it has answers.
        result = query(re.sub(r',?status=~"5\.\."', "", selector))
        if isinstance(result, str):
            wrong.append(f"{name}: {result}")
        elif result:
            seen += 1
        elif metric in ONLY_IN_TROUBLE:
            explained.add(f"{metric}: {ONLY_IN_TROUBLE[metric]}")
        else:
            wrong.append(f"{name}: no series for {selector}")
wrong += [f"{name}: Prometheus has no such rule" for name in names]
print("\n".join([*wrong, f"{seen} selectors return series; without series here, and why:", *sorted(explained)]))
sys.exit(bool(wrong))
