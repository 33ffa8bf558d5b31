"""Every metric that a dashboard or an alert names is one that the source makes, and every alert has its runbook."""
import json
import pathlib
import re
import sys

root = pathlib.Path(sys.argv[1])
source = "".join(path.read_text() for folder in ("server", "proxy") for path in (root / folder).rglob("*.rs") if "target" not in path.parts)
made = set(re.findall(r'"(myelin_[a-z0-9_]+)"', source))
rules = (root / "monitoring/prometheus/rules.yml").read_text()
texts = {"rules.yml": rules}
for path in (root / "monitoring/grafana").glob("*.json"):
    board = json.loads(path.read_text())
    texts[path.name] = "\n".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
wrong = []
for name, text in texts.items():
    for metric in set(re.findall(r"\bmyelin_[a-z0-9_]+", text)):
        if re.sub(r"_(bucket|sum|count)$", "", metric) not in made and metric not in made:
            wrong.append(f"{name}: nothing makes {metric}")
runbooks = (root / "docs/runbooks.md").read_text()
headings = {heading.strip().lower() for heading in re.findall(r"^## (.*)$", runbooks, flags=re.M)}
alerts = re.findall(r"- alert: (\w+)", rules)
links = re.findall(r"runbook_url: .*#(\w+)", rules)
if len(links) != len(alerts):
    wrong.append("an alert has no runbook_url")
wrong += [f"docs/runbooks.md: no section {link}" for link in links if link not in headings]
wrong += [f"docs/runbooks.md: {heading} is the runbook of no alert" for heading in headings - set(links)]
print("\n".join(sorted(wrong)) or f"{len(made)} metrics in the source, {len(alerts)} alerts with runbooks")
sys.exit(bool(wrong))
