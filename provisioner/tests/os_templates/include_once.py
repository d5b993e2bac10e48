"""Processes a user-data twice, as two starts of a machine do, with cloud-init's own code.

include_once.py WORK POINTER CERTIFICATE KEY: serves one answer over TLS, once. The URL in POINTER is replaced by
that of the server. Fails if the second start asks again, or if the certificate is not trusted.
"""

import http.server
import os
import ssl
import sys
import threading

work, pointer, certificate, key = sys.argv[1:]
os.environ["REQUESTS_CA_BUNDLE"] = certificate

from cloudinit import helpers, user_data  # noqa: E402  reads the environment when it fetches


class Once(http.server.BaseHTTPRequestHandler):
    served = 0

    def do_GET(self):
        Once.served += 1
        body = b"#cloud-config\nhostname: fetched\n" if Once.served == 1 else b""
        self.send_response(200 if body else 410)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Source:
    def get_instance_id(self):
        return "one"


server = http.server.HTTPServer(("127.0.0.1", 0), Once)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()

first = open(pointer).read().splitlines()[0]
text = f"{first}\nhttps://127.0.0.1:{server.server_port}/one-use\n"
paths = helpers.Paths({"cloud_dir": work, "run_dir": work}, ds=Source())
os.makedirs(paths.get_ipath("data"), exist_ok=True)
for start in (1, 2):
    message = user_data.UserDataProcessor(paths).process(text)
    parts = [str(part.get_payload()) for part in message.walk() if not part.is_multipart()]
    if not any("hostname: fetched" in part for part in parts):
        sys.exit(f"start {start}: {parts}")
if Once.served != 1:
    sys.exit(f"asked {Once.served} times")
