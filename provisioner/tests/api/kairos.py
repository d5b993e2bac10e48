"""A Kairos agent as far as its phone-home goes, after kairos-agent's published source: registers
once, keeps the credentials, opens the socket, sends heartbeats.

usage: kairos.py URL TOKEN CA SOURCE-ADDRESS CREDENTIALS BOOT-STATE...

It sends one heartbeat for each boot state and then listens until the server closes. What the
server sends is printed, a JSON list a line.
"""

import base64
import http.client
import json
import os
import secrets
import socket
import ssl
import struct
import sys
from urllib.parse import urlencode, urlsplit

url, token, ca, source, credentials = sys.argv[1:6]
states = sys.argv[6:]
place = urlsplit(url)
context = ssl.create_default_context(cafile=ca)


def say(*what):
    print(json.dumps(what), flush=True)


def register():
    """client.go: Register."""
    if os.path.exists(credentials):
        with open(credentials, encoding="utf-8") as file:
            return json.load(file)
    body = {
        "machineID": "0123456789abcdef0123456789abcdef",
        "hostname": "r1n1",
        "registrationToken": token,
        "group": "edge",
        "addresses": [{"type": "InternalIP", "address": source}, {"type": "Hostname", "address": "r1n1"}],
        "bootState": states[0] if states else "unknown",
    }
    connection = http.client.HTTPSConnection(
        place.hostname, place.port, context=context, source_address=(source, 0), timeout=20
    )
    connection.request(
        "POST", "/api/v1/nodes/register", json.dumps(body), {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    if answer.status not in (200, 201):
        say("registration failed", answer.status, json.loads(text)["code"])
        sys.exit(0)
    known = json.loads(text)
    with open(credentials, "w", encoding="utf-8") as file:
        json.dump(known, file)
    say("registered", known["id"])
    return known


def frame(opcode, payload):
    """RFC 6455, 5.2: one masked frame."""
    head = bytes([0x80 | opcode])
    length = len(payload)
    if length < 126:
        head += bytes([0x80 | length])
    elif length < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", length)
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", length)
    mask = secrets.token_bytes(4)
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def exactly(stream, count):
    data = b""
    while len(data) < count:
        piece = stream.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def receive(stream):
    first, second = exactly(stream, 2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack(">H", exactly(stream, 2))
    elif length == 127:
        (length,) = struct.unpack(">Q", exactly(stream, 8))
    assert not second & 0x80, "a server does not mask"
    return first & 0x0F, exactly(stream, length)


def connect(key):
    """client.go: Connect, buildWSURL; gorilla's handshake."""
    raw = socket.create_connection((place.hostname, place.port), 60, (source, 0))
    stream = context.wrap_socket(raw, server_hostname=place.hostname)
    nonce = base64.b64encode(secrets.token_bytes(16)).decode()
    stream.sendall(
        f"GET /api/v1/ws?{urlencode({'token': key})} HTTP/1.1\r\nHost: {place.netloc}\r\n"
        "User-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Key: {nonce}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(stream, 1)
    status = int(head.split()[1])
    if status != 101:
        say("websocket dial", status)
        sys.exit(0)
    import hashlib

    magic = nonce + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
    accept = base64.b64encode(hashlib.sha1(magic.encode()).digest())
    assert accept in head, head
    return stream


known = register()
stream = connect(known["apiKey"])
say("connected")
for state in states:
    heartbeat = {
        "agentVersion": "v2.31.4",
        "osRelease": {"PRETTY_NAME": "Ubuntu 24.04.1 LTS", "KAIROS_VERSION": "v4.2.0", "KERNEL": "6.8.0"},
        "addresses": [{"type": "InternalIP", "address": source}],
        "bootState": state,
    }
    message = json.dumps({"type": "heartbeat", "data": heartbeat})
    stream.sendall(frame(1, message.encode()))
stream.sendall(frame(9, b"ping"))
while True:
    try:
        opcode, payload = receive(stream)
    except EOFError:
        say("gone")
        break
    if opcode == 8:
        code = struct.unpack(">H", payload[:2])[0] if payload else None
        say("closed", code, payload[2:].decode())
        stream.sendall(frame(8, payload[:2]))
        break
    say({1: "message", 10: "pong"}.get(opcode, opcode), payload.decode())
