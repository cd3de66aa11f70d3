"""A server in a thread of this process, and what speaks to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time


class Client:
    """One connection, kept; a new one where the server has closed it."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method, path, body=None, **headers):
        """Status, headers, and the body as JSON where it is that."""
        self.connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
        answer = self.connection.getresponse()
        said = answer.read()
        as_json = answer.headers.get("content-type") == "application/json"
        return answer.status, answer.headers, json.loads(said) if as_json else said

    def score(self, body, query="", **headers):
        status, _, said = self.ask("POST", f"/score{query}", body, **headers)
        return status, said


class Served:
    """A server that runs."""

    def __init__(self, server, port):
        self.server, self.port = server, port

    def client(self):
        return Client(self.port)

    def metrics(self):
        """Every number, by its name."""
        lines = self.client().ask("GET", "/metrics")[2].decode().splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@contextlib.contextmanager
def serving(model, **how):
    """Serve, and stop in the end."""
    from glance_fast.serving.server import server_of

    settings = {"host": "127.0.0.1", "port": 0, "queue": 64, "max_mib": 4, "threads": 1, **how}
    with server_of(model, **settings) as (server, listener):
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Served(server, port)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
