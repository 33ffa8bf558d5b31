#!/usr/bin/env python3
"""Writes the Grafana dashboards in grafana/ from the tables below. Run it after a change and commit what it wrote:

    monitoring/generate.py            writes
    monitoring/generate.py --check    fails if what is committed is not what it would write

A panel is (title, unit, what it tells, queries), a query is (expression, legend). SEL stands for the selection of
instances. Some counters come into being when they first count something, and mostly they count trouble: `or vector(0)`
makes their panels show a zero until then.
"""
import json
import pathlib
import sys

SEL = 'instance=~"$instance"'
RATE = "$__rate_interval"
ZERO = " or vector(0)"


def total(metric, by="", extra="", zero=False):
    """The rate of a counter, summed."""
    clause = f" by ({by})" if by else ""
    return f"sum{clause} (rate({metric}{{{SEL}{extra}}}[{RATE}]))" + (ZERO if zero else "")


def grown(metric, by="", extra=""):
    """How much a counter grew in an hour, for what happens seldom."""
    clause = f" by ({by})" if by else ""
    return f"sum{clause} (increase({metric}{{{SEL}{extra}}}[1h]))" + ZERO


def quantiles(metric, by="", extra=""):
    labels = f"le, {by}" if by else "le"
    return [
        (f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{SEL}{extra}}}[{RATE}])))",
         (f"{{{{{by}}}}} " if by else "") + name)
        for q, name in ((0.5, "median"), (0.99, "99 %"))
    ]


def gauge(metric, legend, by="", extra="", zero=False):
    clause = f" by ({by})" if by else ""
    return (f"sum{clause} ({metric}{{{SEL}{extra}}})" + (ZERO if zero else ""), legend)


def hit_ratio():
    return [(f"sum by (cache) (rate(myelin_cache_hits_total{{{SEL}}}[{RATE}])) / "
             f"sum by (cache) (rate(myelin_cache_hits_total{{{SEL}}}[{RATE}]) + rate(myelin_cache_misses_total{{{SEL}}}[{RATE}]))",
             "{{cache}}")]


FAILED = ', status=~"5.."'
MEDIA = ', route=~".*/media/.*"'

DASHBOARDS = {
    "overview": ("Overview", [
        ("Replicas up", "short", "Servers that Prometheus reaches.", [(f"count(up{{job=~\"$job\", {SEL}}} == 1){ZERO}", "up")], "stat"),
        ("Version", "short", "The version that runs.", [(f"count by (version) (myelin_build_info{{{SEL}}})", "{{version}}")], "stat-name"),
        ("Requests", "reqps", "All requests a second.", [(total("myelin_http_requests_total"), "requests")], "stat"),
        ("Failed requests", "percentunit", "Answers with a status of 500 and above, of all answers.",
         [(f"({total('myelin_http_requests_total', extra=FAILED)}{ZERO}) / clamp_min({total('myelin_http_requests_total')}, 0.001)", "failed")], "stat"),
        ("Clients that wait for news", "short", "Requests to /sync that wait for something to happen.", [gauge("myelin_sync_waiters", "waiting")], "stat"),
        ("Certificate ends in", "s", "Below a week, renewal has failed for weeks. Without a listener that speaks TLS there is none.",
         [(f"(min(myelin_tls_certificate_expiry_timestamp_seconds{{{SEL}}}) - time()){ZERO}", "left")], "stat"),
        ("Requests by status", "reqps", "499: the client left before the answer.", [(total("myelin_http_requests_total", "status"), "{{status}}")]),
        ("Duration of requests", "s", "Without those that wait for news.", quantiles("myelin_http_request_duration_seconds", extra=', route!~".*/sync"')),
        ("Events", "ops", "Events that were written, of this server's people and of others.", [(total("myelin_store_events_written_total"), "events")]),
        ("Writes waiting", "short", "Writes that wait for the next commit. Long for long: the database is slow.", [gauge("myelin_store_commit_queue", "waiting")]),
        ("Memory", "bytes", "What the system counts, and what the program uses of it.",
         [gauge("process_resident_memory_bytes", "resident"), gauge("myelin_jemalloc_bytes", "in use", extra=', state="allocated"')]),
        ("Processor", "short", "Cores in use.", [(total("process_cpu_seconds_total"), "cores")]),
        ("Servers behind", "short", "Other servers that have not got all that they should.",
         [gauge("myelin_federation_destinations_behind", "behind"), gauge("myelin_federation_destinations_troubled", "in trouble")]),
        ("Up since", "dateTimeFromNow", "When each process began.", [(f"process_start_time_seconds{{{SEL}}} * 1000", "{{instance}}")], "stat"),
    ]),
    "requests": ("Requests", [
        ("Requests by route", "reqps", "The ten busiest.", [(f"topk(10, {total('myelin_http_requests_total', 'route')})", "{{route}}")]),
        ("Requests by status", "reqps", "499: the client left before the answer.", [(total("myelin_http_requests_total", "status"), "{{status}}")]),
        ("Failures by route", "reqps", "Statuses of 500 and above.", [(f"topk(10, {total('myelin_http_requests_total', 'route, status', FAILED)}){ZERO}", "{{status}} {{route}}")]),
        ("Slowest routes", "s", "The duration that one request of a hundred exceeds, without those that wait for news.",
         [(f"topk(10, histogram_quantile(0.99, sum by (le, route) (rate(myelin_http_request_duration_seconds_bucket{{{SEL}, route!~\".*/sync\"}}[{RATE}]))))", "{{route}}")]),
        ("Duration by method", "s", "Without those that wait for news.", quantiles("myelin_http_request_duration_seconds", "method", ', route!~".*/sync"')),
        ("Under way", "short", "Requests that are being answered, with those that wait for news.", [gauge("myelin_http_requests_in_flight", "under way")]),
        ("Refused by a rate limit", "reqps", "By the limit's kind.", [(total("myelin_http_rate_limited_total", "kind", zero=True), "{{kind}}")]),
        ("Remembered for rate limits", "short", "Users and addresses.", [gauge("myelin_http_rate_limit_keys", "{{kind}}", "kind")]),
        ("Passwords", "s", "Checking a password, with the wait for a turn.", quantiles("myelin_accounts_password_seconds")),
        ("Passwords waiting", "short", "Many for long: somebody guesses.", [gauge("myelin_accounts_password_queue", "waiting")]),
    ]),
    "sync": ("Sync", [
        ("Clients that wait", "short", "Requests to /sync that wait for something to happen.", [gauge("myelin_sync_waiters", "waiting")]),
        ("Answers", "reqps", "By kind.", [(total("myelin_sync_answers_total", "kind"), "{{kind}}")]),
        ("Making an answer", "s", "Without waiting.", quantiles("myelin_sync_answer_duration_seconds", "kind")),
        ("From the event to the answer", "s", "How long after a commit those who waited had their answer.", quantiles("myelin_sync_wake_to_answer_seconds")),
        ("Sliding sync", "reqps", "Answers.", [(total("myelin_sliding_sync_answers_total", zero=True), "answers")]),
        ("Making an answer of sliding sync", "s", "Without waiting.",
         [(query + ZERO, legend) for query, legend in quantiles("myelin_sliding_sync_answer_duration_seconds")]),
        ("Positions that had expired", "short", "In an hour. The client begins anew, which costs more.", [(grown("myelin_sliding_sync_positions_expired_total"), "expired")]),
        ("Users in memory", "short", "Users whose rooms this process knows.", [gauge("myelin_sync_users", "users")]),
        ("Reads for answers", "ops", "What had to be read from the database.",
         [(total("myelin_sync_user_loads_total", zero=True), "users"), (total("myelin_sync_unread_scans_total", zero=True), "unread counts"),
          (total("myelin_sync_receipt_reads_total", zero=True), "receipts"), (total("myelin_sync_key_count_reads_total", zero=True), "key counts")]),
        ("Messages to devices", "ops", "Encryption keys travel like this.",
         [(total("myelin_store_to_device_messages_total", zero=True), "sent"), (total("myelin_store_to_device_dropped_total", zero=True), "dropped")]),
    ]),
    "federation": ("Federation", [
        ("Other servers", "short", "Servers that share rooms with this one, those that have not got everything yet, and those that do not answer.",
         [gauge("myelin_federation_destinations_known", "known"), gauge("myelin_federation_destinations_behind", "behind"),
          gauge("myelin_federation_destinations_troubled", "in trouble"), gauge("myelin_federation_backing_off_servers", "left alone for now")]),
        ("Waiting to be sent", "short", "Events in the queues, and positions of the stream that the sender has not looked at yet.",
         [gauge("myelin_federation_queued_events", "events"), gauge("myelin_federation_sender_lag", "lag")]),
        ("Sent", "ops", "Events (PDUs), and what is not kept, such as typing (EDUs).",
         [(total("myelin_federation_pdus_sent_total", zero=True), "events"), (total("myelin_federation_edus_sent_total", zero=True), "EDUs"),
          (total("myelin_federation_pdus_refused_total", zero=True), "events refused")]),
        ("Transactions", "s", "Sending one, until the other server's answer.", quantiles("myelin_federation_transaction_send_seconds")),
        ("Received events", "ops", "By what became of them.", [(total("myelin_rooms_received_events_total", "outcome"), "{{outcome}}")]),
        ("Requests to others", "reqps", "By outcome.", [(total("myelin_federation_requests_total", "outcome", zero=True), "{{outcome}}")]),
        ("Duration of requests to others", "s", "All of them.",
         [(query + ZERO, legend) for query, legend in quantiles("myelin_federation_request_seconds")]),
        ("Connections that were dialled", "ops", "By outcome.", [(total("myelin_federation_dials_total", "outcome", zero=True), "{{outcome}}")]),
        ("Others that could not prove who they are", "short", "In an hour.", [(grown("myelin_federation_refused_authentications_total"), "refused")]),
        ("Resolving states", "s", "When servers disagreed on a room's state.",
         [(query + ZERO, legend) for query, legend in quantiles("myelin_rooms_state_resolution_seconds")]),
        ("The sender's last checkpoint", "s", "How old it is. One replica sends; if it stands still, nobody does.",
         [(f"time() - max(myelin_federation_checkpoint_timestamp_seconds{{{SEL}}})", "age")]),
        ("Who sends", "short", "1 for the replica that has the duty.", [(f"myelin_store_lease_held{{{SEL}, lease=\"federation_sender\"}}", "{{instance}}")]),
    ]),
    "database": ("Database", [
        ("Connections", "short", "None idle for long: raise database.max_connections.", [gauge("myelin_database_connections", "{{state}}", "state")]),
        ("Commits", "s", "Their duration.", quantiles("myelin_store_commit_duration_seconds")),
        ("Commits a second", "ops", "Each gathers what waits.", [(total("myelin_store_commit_duration_seconds_count"), "commits")]),
        ("Writes in a commit", "short", "The mean.",
         [(f"{total('myelin_store_commit_batch_size_sum')} / clamp_min({total('myelin_store_commit_batch_size_count')}, 0.001)", "writes")]),
        ("Writes waiting", "short", "For the next commit.", [gauge("myelin_store_commit_queue", "waiting")]),
        ("Commits that failed", "short", "In an hour. Conflicts are tried again, failures were told to the client.",
         [(grown("myelin_store_commit_failures_total"), "failed"), (grown("myelin_store_commit_conflicts_total"), "conflicts")]),
        ("Events", "ops", "Written.", [(total("myelin_store_events_written_total"), "events")]),
        ("Position in the stream", "short", "How far each process has followed it; they should not drift apart.", [(f"myelin_store_stream_position{{{SEL}}}", "{{instance}}")]),
        ("Duties", "short", "1 for the replica that has it.", [(f"max by (lease, instance) (myelin_store_lease_held{{{SEL}}})", "{{lease}} {{instance}}")]),
        ("Lost between replicas", "short", "In an hour: duties that were lost, gaps that were read again, typing and presence that others could not be told.",
         [(grown("myelin_store_leases_lost_total"), "duties"), (grown("myelin_store_stream_gap_reads_total"), "gaps"), (grown("myelin_store_ephemeral_lost_total"), "typing, presence")]),
    ]),
    "memory": ("Caches and memory", [
        ("Memory", "bytes", "resident is what it costs.", [gauge("myelin_jemalloc_bytes", "{{state}}", "state", ', state=~"allocated|active|resident|retained"')]),
        ("Memory as the system sees it", "bytes", "By instance.", [(f"process_resident_memory_bytes{{{SEL}}}", "{{instance}}")]),
        ("Caches", "bytes", "Bounded together by cache.memory.", [gauge("myelin_cache_bytes", "{{cache}}", "cache")]),
        ("Found in a cache", "percentunit", "Of what it was asked for.", hit_ratio()),
        ("Misses", "ops", "Each is a read from the database.", [(total("myelin_cache_misses_total", "cache"), "{{cache}}")]),
        ("Memory of federation", "bytes", "Bodies under way, and answers kept for other servers.",
         [gauge("myelin_federation_body_bytes", "bodies"), gauge("myelin_rooms_served_cache_bytes", "served"), gauge("myelin_rooms_elsewhere_cache_bytes", "from elsewhere", zero=True)]),
        ("Processor", "short", "Cores in use.", [(total("process_cpu_seconds_total", "instance"), "{{instance}}")]),
        ("Threads", "short", "By instance.", [(f"process_threads{{{SEL}}}", "{{instance}}")]),
    ]),
    "edge": ("Edge and certificates", [
        ("Connections", "short", "Open, and those of them that have not asked for anything.", [gauge("myelin_connections", "open"), gauge("myelin_connections_new", "new")]),
        ("New connections", "ops", "By protocol.", [(total("myelin_connections_total", "protocol"), "{{protocol}}")]),
        ("Sent away", "ops", "By reason.", [(total("myelin_connections_refused_total", "reason", zero=True), "{{reason}}")]),
        ("Handshakes of TLS", "ops", "By outcome. None without a listener that speaks TLS.", [(total("myelin_tls_handshakes_total", "outcome", zero=True), "{{outcome}}")]),
        ("Duration of handshakes", "s", "All of them.", [(query + ZERO, legend) for query, legend in quantiles("myelin_tls_handshake_seconds")]),
        ("Certificates end in", "s", "By name.",
         [(f"min by (name) (myelin_tls_certificate_expiry_timestamp_seconds{{{SEL}}} - time()){ZERO}", "{{name}}")]),
        ("Certificates by ACME", "short", "Attempts in an hour, by outcome; 1 while there is no certificate yet.",
         [(grown("myelin_acme_attempts_total", "outcome"), "{{outcome}}"), gauge("myelin_acme_waiting", "waiting", zero=True)]),
        ("Changed certificate files", "short", "In an hour.", [(grown("myelin_tls_certificate_reloads_total", "outcome"), "{{outcome}}")]),
        ("Open files", "percentunit", "Of those that the system allows. Connections are files.",
         [(f"process_open_fds{{{SEL}}} / process_max_fds{{{SEL}}}", "{{instance}}")]),
        ("Refused by a rate limit", "reqps", "By the limit's kind.", [(total("myelin_http_rate_limited_total", "kind", zero=True), "{{kind}}")]),
    ]),
    "media": ("Media", [
        ("Uploaded", "Bps", "Bytes a second.", [(total("myelin_media_uploaded_bytes_total", zero=True), "uploaded")]),
        ("Downloads", "reqps", "Files a second.", [(total("myelin_media_downloads_total", zero=True), "downloads")]),
        ("Requests", "reqps", "By route.", [(total("myelin_http_requests_total", "route", MEDIA, zero=True), "{{route}}")]),
        ("Duration", "s", "By method.", [(query + ZERO, legend) for query, legend in quantiles("myelin_http_request_duration_seconds", "method", MEDIA)]),
        ("Refused or failed", "reqps", "Statuses of 400 and above.",
         [(total("myelin_http_requests_total", "status", MEDIA + ', status=~"[45].."', zero=True), "{{status}}")]),
    ]),
}


def panel(number, place, entry):
    title, unit, about, queries = entry[:4]
    kind = entry[4] if len(entry) > 4 else "timeseries"
    source = {"type": "prometheus", "uid": "${datasource}"}
    made = {
        "id": number, "type": "timeseries" if kind == "timeseries" else "stat", "title": title, "description": about,
        "datasource": source, "gridPos": place,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0} if unit not in ("s", "dateTimeFromNow") else {"unit": unit}, "overrides": []},
        "targets": [{"refId": chr(65 + at), "datasource": source, "expr": expr, "legendFormat": legend,
                     **({"instant": True} if kind != "timeseries" else {})}
                    for at, (expr, legend) in enumerate(queries)],
    }
    if kind == "timeseries":
        made["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 8, "lineWidth": 1, "showPoints": "never", "spanNulls": True}
        made["options"] = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                           "tooltip": {"mode": "multi", "sort": "desc"}}
    else:
        made["options"] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                           "colorMode": "none", "graphMode": "none", "textMode": "name" if kind == "stat-name" else "value"}
    return made


def variable(name, label, query, **more):
    return {"name": name, "label": label, "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": query, "refId": name}, "definition": query, "refresh": 2, "sort": 1, "multi": True,
            "includeAll": True, "current": {"text": "All", "value": "$__all"}, **more}


def dashboard(key, title, entries):
    panels, x, y, row = [], 0, 0, 0
    for number, entry in enumerate(entries, 1):
        width, height = (4, 4) if len(entry) > 4 else (12, 8)
        if x + width > 24 or (x > 0 and height != row):
            x, y = 0, y + row
        row = height
        panels.append(panel(number, {"x": x, "y": y, "w": width, "h": height}, entry))
        x += width
    return {
        "uid": f"myelin-{key}", "title": f"Myelin: {title}", "tags": ["myelin"], "schemaVersion": 39, "version": 1,
        "editable": True, "refresh": "30s", "time": {"from": "now-3h", "to": "now"}, "timezone": "browser",
        "graphTooltip": 1, "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "Myelin", "tags": ["myelin"], "asDropdown": True, "keepTime": True, "includeVars": True}],
        "templating": {"list": [
            {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0, "refresh": 1},
            variable("job", "Job", "label_values(myelin_build_info, job)", hide=2 if key != "overview" else 0),
            variable("instance", "Instance", 'label_values(myelin_build_info{job=~"$job"}, instance)'),
        ]},
        "panels": panels,
    }


def main():
    folder = pathlib.Path(__file__).parent / "grafana"
    wanted = {folder / f"{key}.json": json.dumps(dashboard(key, *content), indent=1) + "\n" for key, content in DASHBOARDS.items()}
    if "--check" in sys.argv[1:]:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text() != text]
        stale += [path.name for path in folder.glob("*.json") if path not in wanted]
        if stale:
            sys.exit(f"not what monitoring/generate.py writes: {', '.join(sorted(stale))}")
        return
    folder.mkdir(exist_ok=True)
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
