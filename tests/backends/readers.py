"""Cuts recorded connections into requests with the parsers of real servers: h11, and httptools, which is Node's.

Reads JSON, a list of connections as text in base64; writes for each parser and connection the requests: method, target, body.
"""

import base64
import json
import sys

import h11
import httptools


def by_h11(data):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    requests, request = [], None
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            request = [event.method.decode(), event.target.decode(), b""]
        elif isinstance(event, h11.Data):
            request[2] += event.data
        elif isinstance(event, h11.EndOfMessage):
            requests.append(request)
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return requests
            connection.start_next_cycle()
        else:
            return requests


class Protocol:
    def __init__(self):
        self.requests = []

    def on_message_begin(self):
        self.target, self.body = b"", b""

    def on_url(self, url):
        self.target += url

    def on_body(self, body):
        self.body += body

    def on_message_complete(self):
        self.requests.append([self.parser.get_method().decode(), self.target.decode(), self.body])


def by_httptools(data):
    protocol = Protocol()
    protocol.parser = httptools.HttpRequestParser(protocol)
    try:
        protocol.parser.feed_data(data)
    except httptools.HttpParserUpgrade as upgrade:
        # A server that does not upgrade reads on behind the request.
        rest = data[upgrade.args[0]:]
        return protocol.requests + (by_httptools(rest) if rest else [])
    return protocol.requests


def main():
    connections = [base64.b64decode(text) for text in json.load(sys.stdin)]
    answer = {}
    for name, parse in [("h11", by_h11), ("httptools", by_httptools)]:
        answer[name] = []
        for data in connections:
            try:
                requests = [[method, target, body.decode("latin-1")] for method, target, body in parse(data)]
            except Exception as error:  # Whatever it takes offence at is the test's business.
                requests = f"{type(error).__name__}: {error}"
            answer[name].append(requests)
    json.dump(answer, sys.stdout)


main()
