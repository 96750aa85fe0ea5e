"""What every SDK is asked, once."""

SCHEMA = {
    "type": "object",
    "properties": {"topic": {"type": "string"}, "urgent": {"type": "boolean"}},
    "required": ["topic", "urgent"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
# A city that the smallest model comes to the end of.
KIND = {**CITY, "properties": {"city": {"enum": ["Ulm", "Bonn"]}}}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}}
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HELLO = [{"role": "user", "content": "Say hi."}]


def answers(provider, text):
    """Whether a text is what the provider of the tests says to a greeting."""
    if provider == "local":
        return isinstance(text, str) and text.strip() != ""
    return text == ("Say hi." if provider == "mock" else "Hi grüße 🦀")
