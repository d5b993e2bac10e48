"""Prints the DHCP messages of one machine as they pass a bridge: DISCOVER, OFFER 10.0.0.1, ...

For ci.sh: it only listens, on a packet socket, so that it sees what the machine sees.
"""
import socket
import sys

NAMES = {1: "DISCOVER", 2: "OFFER", 3: "REQUEST", 4: "DECLINE", 5: "ACK", 6: "NAK"}
ETH_P_ALL = 3

interface, mac = sys.argv[1], bytes.fromhex(sys.argv[2].replace(":", ""))
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
wire.bind((interface, 0))
print("listening", flush=True)
while True:
    frame = wire.recv(65535)
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        continue  # not IPv4 with UDP
    udp = frame[14 + 4 * (frame[14] & 15):]
    if {int.from_bytes(udp[0:2], "big"), int.from_bytes(udp[2:4], "big")} & {67, 68} == set():
        continue
    bootp = udp[8:]
    if bootp[28:34] != mac or bootp[236:240] != b"\x63\x82\x53\x63":
        continue
    options = bootp[240:]
    while options and options[0] != 255:
        if options[0] == 0:
            options = options[1:]
            continue
        if options[0] == 53:
            name = NAMES.get(options[2], str(options[2]))
            address = socket.inet_ntoa(bootp[16:20]) if bootp[0] == 2 else ""
            print(name, address, sep=" " if address else "", flush=True)
        options = options[2 + options[1]:]
