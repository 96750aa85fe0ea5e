"""Hosted providers as far as their public API documents go, each on a port and with a key of its own: OpenAI and a row (chat, embeddings),
Azure (the same by deployment), Anthropic (messages, count_tokens) and Gemini (generateContent, streamGenerateContent, embeddings). Every
request must carry its provider's own key and no other, is parsed strictly with the vendor's own SDK types before it is answered, and is
kept for the tests; every answer and every event of a stream is parsed with the vendor's types, too.

What is answered follows from the request: two parallel calls where tools are offered, JSON where a schema is given, 7 degrees after a
tool's result, a description where an image is sent, and a greeting otherwise."""

import base64
import json
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import strict

TEXT = "Hi grüße 🦀"
JSON = '{"topic": "hi", "urgent": false}'
CITIES = ["Ulm", "Bonn"]
VECTOR = [0.5, -1.25, 2.0]


class Wanted:
    """What a request asks for, in no protocol."""

    def __init__(self, tools, results, schema, image, thinking=False):
        self.calls = bool(tools) and not results
        self.thinking = thinking
        self.text = "7 degrees" if results else JSON if schema else "a dot" if image else TEXT

    def pieces(self):
        middle = len(self.text) // 2
        return [self.text[:middle], self.text[middle:]]


# ---- OpenAI -------------------------------------------------------------------------------------------------------------------


def openai_wanted(body):
    parts = [part for message in body["messages"] if isinstance(message.get("content"), list) for part in message["content"]]
    schema = (body.get("response_format") or {}).get("type") in ("json_schema", "json_object")
    return Wanted(body.get("tools"), body["messages"][-1]["role"] == "tool", schema, any(p["type"] == "image_url" for p in parts))


OPENAI_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "total_tokens": 25,
    "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0},
}


def openai_call(i, city=None):
    return {"id": f"call_{i}", "type": "function", "function": {"name": "get_weather", "arguments": json.dumps({"city": city}) if city else ""}}


def openai_whole(body):
    wanted = openai_wanted(body)
    message = {"role": "assistant", "content": wanted.text, "refusal": None}
    finish = "stop"
    if wanted.calls:
        message |= {"content": None, "tool_calls": [openai_call(i, city) for i, city in enumerate(CITIES)]}
        finish = "tool_calls"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1760000000, "model": body["model"], "choices": [choice], "usage": OPENAI_USAGE}


def openai_stream(body):
    wanted = openai_wanted(body)
    deltas = [{"role": "assistant", "content": ""}]
    if wanted.calls:
        for i, city in enumerate(CITIES):
            arguments = json.dumps({"city": city})
            deltas.append({"tool_calls": [{"index": i} | openai_call(i)]})
            deltas += [{"tool_calls": [{"index": i, "function": {"arguments": arguments[j : j + 6]}}]} for j in range(0, len(arguments), 6)]
    else:
        deltas += [{"content": piece} for piece in wanted.pieces()]
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1760000000, "model": body["model"]}
    for delta in deltas:
        yield None, chunk | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield None, chunk | {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if wanted.calls else "stop"}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield None, chunk | {"choices": [], "usage": OPENAI_USAGE}
    yield None, "[DONE]"


def openai_embeddings(body):
    inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
    vector = VECTOR
    if body.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, _ in enumerate(inputs)]
    return {"object": "list", "data": data, "model": body["model"], "usage": {"prompt_tokens": 3, "total_tokens": 3}}


# ---- Anthropic ----------------------------------------------------------------------------------------------------------------


def anthropic_wanted(body):
    last = body["messages"][-1]["content"]
    blocks = last if isinstance(last, list) else []
    kinds = [block["type"] for block in blocks]
    schema = (body.get("output_config") or {}).get("format")
    thinking = (body.get("thinking") or {}).get("type") in ("enabled", "adaptive")
    return Wanted(body.get("tools"), "tool_result" in kinds, schema, "image" in kinds, thinking)


def anthropic_message(body, content, stop):
    usage = {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 16, "output_tokens": 5}
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}


def anthropic_blocks(wanted):
    thoughts = [{"type": "thinking", "thinking": "Greet them.", "signature": "c2ln"}] if wanted.thinking else []
    if wanted.calls:
        calls = [{"type": "tool_use", "id": f"toolu_{i}", "name": "get_weather", "input": {"city": city}} for i, city in enumerate(CITIES)]
        return thoughts + calls, "tool_use"
    return thoughts + [{"type": "text", "text": wanted.text}], "end_turn"


def anthropic_whole(body):
    return anthropic_message(body, *anthropic_blocks(anthropic_wanted(body)))


def anthropic_stream(body):
    wanted = anthropic_wanted(body)
    blocks, stop = anthropic_blocks(wanted)
    yield "message_start", {"type": "message_start", "message": anthropic_message(body, [], None)}
    yield "ping", {"type": "ping"}
    for i, block in enumerate(blocks):
        empty, deltas = {
            "text": lambda: ({"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in wanted.pieces()]),
            "thinking": lambda: (
                {"type": "thinking", "thinking": "", "signature": ""},
                [{"type": "thinking_delta", "thinking": block["thinking"]}, {"type": "signature_delta", "signature": block["signature"]}],
            ),
            "tool_use": lambda: (
                block | {"input": {}},
                [{"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"city": ', json.dumps(block["input"]["city"]), "}")],
            ),
        }[block["type"]]()
        yield "content_block_start", {"type": "content_block_start", "index": i, "content_block": empty}
        for delta in deltas:
            yield "content_block_delta", {"type": "content_block_delta", "index": i, "delta": delta}
        yield "content_block_stop", {"type": "content_block_stop", "index": i}
    yield "message_delta", {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": 5}}
    yield "message_stop", {"type": "message_stop"}


# ---- Gemini -------------------------------------------------------------------------------------------------------------------


def gemini_wanted(body):
    parts = body["contents"][-1]["parts"]
    schema = (body.get("generationConfig") or {}).get("responseMimeType") == "application/json"
    return Wanted(body.get("tools"), any("functionResponse" in part for part in parts), schema, any("inlineData" in part for part in parts))


def gemini_answer(parts, finish):
    candidate = {"content": {"role": "model", "parts": parts}, "index": 0} | ({"finishReason": finish} if finish else {})
    usage = {"promptTokenCount": 20, "candidatesTokenCount": 3, "thoughtsTokenCount": 2, "cachedContentTokenCount": 16, "totalTokenCount": 25}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3-flash", "responseId": "r-1"}


def gemini_calls():
    return [{"functionCall": {"id": f"fc-{i}", "name": "get_weather", "args": {"city": city}}} for i, city in enumerate(CITIES)]


def gemini_whole(body):
    wanted = gemini_wanted(body)
    return gemini_answer(gemini_calls() if wanted.calls else [{"text": wanted.text}], "STOP")


def gemini_stream(body):
    wanted = gemini_wanted(body)
    pieces = [[call] for call in gemini_calls()] if wanted.calls else [[{"text": piece}] for piece in wanted.pieces()]
    for i, parts in enumerate(pieces):
        yield None, gemini_answer(parts, "STOP" if i + 1 == len(pieces) else None)


# ---- the servers --------------------------------------------------------------------------------------------------------------

# Provider -> the header in which its key travels.
KEY_HEADERS = {"openai": "authorization", "azure": "api-key", "anthropic": "x-api-key", "gemini": "x-goog-api-key", "groq": "authorization"}
IDS = {"openai": "gpt-4o-mini", "anthropic": "claude-opus-5-5", "groq": "llama-3.3-70b"}


@dataclass
class Seen:
    """A request as it arrived at a provider."""

    provider: str
    path: str
    headers: dict
    body: dict


class Vendors:
    """The providers; `seen` holds every request, `wrong` what was not valid."""

    def __init__(self):
        self.seen, self.wrong, self.tolerant = [], [], False
        self.keys = {name: f"sk-{name}-4f1d" for name in KEY_HEADERS}
        self.servers = {name: ThreadingHTTPServer(("127.0.0.1", 0), self.handler(name)) for name in KEY_HEADERS}
        for server in self.servers.values():
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def url(self, provider):
        return f"http://127.0.0.1:{self.servers[provider].server_address[1]}/{provider}"

    @contextmanager
    def tolerating(self):
        """What a vendor would refuse is answered where that can be done, and refused otherwise, but is no mistake; a key that goes astray is."""
        self.tolerant = True
        try:
            yield
        finally:
            self.tolerant = False

    def check_key(self, provider, headers):
        """The provider's own key in its own header, and nobody else's in any."""
        own, header = self.keys[provider], KEY_HEADERS[provider]
        if headers.get(header) != (f"Bearer {own}" if header == "authorization" else own):
            return f"{provider}: its own key does not stand in {header}"
        others = [key for key in self.keys.values() if key != own]
        if any(key in value for key in others for value in headers.values()) or any(h in headers for h in set(KEY_HEADERS.values()) - {header}):
            return f"{provider}: another key came"
        return None

    def close(self):
        for server in self.servers.values():
            server.shutdown()
            server.server_close()

    def handler(vendors, provider):  # noqa: N805 - `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def arrived(self, body):
                """Keeps the request; whether its key is right."""
                headers = {name.lower(): value for name, value in self.headers.items()}
                vendors.seen.append(Seen(provider, self.path, headers, body))
                wrong = vendors.check_key(provider, headers)
                if wrong:
                    vendors.wrong.append(f"{wrong}: {self.command} {self.path}")
                    self.whole({"error": {"message": "not your key", "type": "authentication_error"}}, 401)
                return headers, not wrong

            def do_GET(self):
                if not self.arrived({})[1]:
                    return
                if provider == "gemini":
                    return self.whole({"models": [{"name": "models/gemini-3-flash", "displayName": "Gemini"}]})
                self.whole({"object": "list", "data": [{"id": IDS[provider], "object": "model"}], "has_more": False})

            def administration(self, bytes):
                """Files come as forms; a job is made of anything."""
                if self.headers["content-type"].startswith("multipart/form-data"):
                    headers, right = self.arrived({})
                    assert b'name="purpose"' in bytes and b'name="file"; filename=' in bytes, bytes[:500]
                    return right and self.whole({"id": "file-vendor", "object": "file", "purpose": "fine-tune"})
                body = json.loads(bytes or b"{}")
                _, right = self.arrived(body)
                job = {"id": "ftjob-vendor", "object": "fine_tuning.job", "status": "queued", "model": body.get("model"), "hyperparameters": {"n_epochs": "auto"}}
                return right and self.whole(job)

            def do_POST(self):
                bytes = self.rfile.read(int(self.headers["content-length"] or 0))
                if self.path.split("?")[0].endswith("/files") or "/fine_tuning/" in self.path:
                    return self.administration(bytes)
                body = json.loads(bytes)
                headers, right = self.arrived(body)
                if not right:
                    return
                try:
                    if not vendors.tolerant:
                        self.check(body, headers)
                    self.answer(body)
                except Exception as error:  # noqa: BLE001 - whatever is wrong with a request belongs into the report
                    if not vendors.tolerant:
                        vendors.wrong.append(f"{provider} {self.path}: {error}\n{json.dumps(body)[:2000]}")
                    self.whole({"error": {"message": f"not valid: {error}", "type": "invalid_request_error"}}, 400)

            def check(self, body, headers):
                if provider == "anthropic":
                    return strict.anthropic_request(body, headers["anthropic-version"], self.path.endswith("/count_tokens"))
                if provider == "gemini":
                    return {
                        "batchEmbedContents": strict.gemini_embeddings_request,
                        "countTokens": strict.gemini_count_request,
                    }.get(self.path.split(":")[-1].split("?")[0], strict.gemini_request)(body)
                embeddings = self.path.split("?")[0].endswith("/embeddings")
                return strict.openai_embeddings_request(body) if embeddings else strict.openai_request(body)

            def answer(self, body):
                if provider == "anthropic":
                    if self.path.endswith("/count_tokens"):
                        return self.whole({"input_tokens": 14})
                    if body.get("stream"):
                        return self.events(anthropic_stream(body), strict.anthropic_event)
                    return self.whole(strict.anthropic_reply(anthropic_whole(body)))
                if provider == "gemini":
                    if "batchEmbedContents" in self.path:
                        return self.whole({"embeddings": [{"values": VECTOR} for _ in body["requests"]]})
                    if "countTokens" in self.path:
                        return self.whole({"totalTokens": 14})
                    if "streamGenerateContent" in self.path:
                        return self.events(gemini_stream(body), strict.gemini_reply)
                    return self.whole(strict.gemini_reply(gemini_whole(body)))
                if self.path.split("?")[0].endswith("/embeddings"):
                    return self.whole(openai_embeddings(body))
                if body.get("stream"):
                    return self.events(openai_stream(body), strict.openai_chunk)
                return self.whole(strict.openai_reply(openai_whole(body)))

            def whole(self, body, status=200):
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def events(self, events, valid):
                # All of them before the first is sent: what is wrong with one has a status then.
                events = list(events)
                for _, data in events:
                    if data != "[DONE]":
                        valid(data)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for kind, data in events:
                    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
                    event = (f"event: {kind}\n" if kind else "") + f"data: {text}\n\n"
                    raw = event.encode()
                    self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")

        return Handler
