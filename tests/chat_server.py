"""An OpenAI-compatible endpoint on a free port, which answers as a test wants it to."""

import http.server
import json
import threading
from contextlib import contextmanager

from evcap.generators import chat_completions


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Answers requests with what the server's script says, one entry each: a status and a body, or a function."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers, json.loads(body)))
        step = self.server.script[min(len(self.server.seen), len(self.server.script)) - 1]
        if callable(step):
            step(self)
            return
        status, text = step
        self.send_response(status)
        self.send_header("Content-Length", str(len(text.encode())))
        if status == 302:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # clients that go away are part of the tests


@contextmanager
def served(monkeypatch):
    """A server: `script` is what it answers, `seen` what it was sent, `url` its address, `waited` the client's pauses."""
    monkeypatch.setattr(chat_completions, "sleep", lambda seconds: server.waited.append(seconds))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = Server(("127.0.0.1", 0), Endpoint)
    server.seen, server.waited, server.url = [], [], f"http://127.0.0.1:{server.server_port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def said(content) -> tuple[int, str]:
    return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})
