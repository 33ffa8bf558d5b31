"""Two people chat for a moment, so that there is something to count: chat.py URL TLS_URL PREFIX."""
import json
import ssl
import sys
import urllib.error
import urllib.request

base, over_tls, prefix = sys.argv[1:]
# The certificate is the server's own.
unchecked = ssl.create_default_context()
unchecked.check_hostname = False
unchecked.verify_mode = ssl.CERT_NONE


def ask(method, path, body=None, token=None, url=base):
    data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30, context=unchecked if url == over_tls else None) as answer:
            text = answer.read()
    except urllib.error.HTTPError as refused:
        if refused.code != 401:
            raise SystemExit(f"{method} {path}: {refused.code} {refused.read()}") from refused
        text = refused.read()
    try:
        return json.loads(text)
    except ValueError:
        return text


def register(name):
    body = {"username": f"{prefix}-{name}", "password": "correct horse battery"}
    session = ask("POST", "/_matrix/client/v3/register", body)["session"]
    body["auth"] = {"type": "m.login.dummy", "session": session}
    return ask("POST", "/_matrix/client/v3/register", body)


alice, bob = register("alice"), register("bob")
room = ask("POST", "/_matrix/client/v3/createRoom", {"preset": "public_chat"}, alice["access_token"])["room_id"]
ask("POST", f"/_matrix/client/v3/join/{room}", {}, bob["access_token"])
since = ask("GET", "/_matrix/client/v3/sync?timeout=0", token=bob["access_token"])["next_batch"]
for number in range(3):
    ask("PUT", f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{number}", {"msgtype": "m.text", "body": "Hello"}, alice["access_token"])
ask("GET", f"/_matrix/client/v3/sync?timeout=0&since={since}", token=bob["access_token"], url=over_tls)
ask("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync",
    {"lists": {"all": {"ranges": [[0, 9]], "timeline_limit": 3, "required_state": []}}}, bob["access_token"])
file = ask("POST", "/_matrix/media/v3/upload?filename=a.txt", b"a file", alice["access_token"])["content_uri"]
ask("GET", f"/_matrix/client/v1/media/download/{file.removeprefix('mxc://')}", token=bob["access_token"])
