// The OpenAI and Anthropic Node SDKs against every provider: `node cases.mjs --list` names the cases, `node cases.mjs` runs them and
// prints one JSON object, name -> error or null.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const listing = process.argv.includes("--list");
const ALL = ["openai", "azure", "anthropic", "gemini", "row", "local", "mock"];
const CAPABLE = ["openai", "azure", "anthropic", "gemini", "row"];
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const TOOL = { type: "function", function: { name: "get_weather", parameters: CITY } };
const SCHEMA = {
  type: "object",
  properties: { topic: { type: "string" }, urgent: { type: "boolean" } },
  required: ["topic", "urgent"],
  additionalProperties: false,
};
const HELLO = [{ role: "user", content: "Say hi." }];
const models = JSON.parse(process.env.REFIT_MODELS ?? "{}");

const answers = (provider, text) => {
  if (provider === "local") assert.ok(text.trim());
  else assert.equal(text, provider === "mock" ? "Say hi." : "Hi grüße 🦀");
};

let openai, azure, anthropic;
if (!listing) {
  const require = createRequire(process.env.REFIT_NODE_MODULES + "/");
  const { default: OpenAI, AzureOpenAI } = require("openai");
  const { default: Anthropic } = require("@anthropic-ai/sdk");
  const [url, apiKey] = [process.env.REFIT_URL, process.env.REFIT_KEY];
  openai = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
  azure = new AzureOpenAI({ endpoint: url, apiKey, apiVersion: "2024-10-21", maxRetries: 0 });
  anthropic = new Anthropic({ baseURL: url, apiKey, maxRetries: 0 });
}

const cases = {};
const each = (name, providers, run) => providers.forEach((provider) => (cases[`${name}[${provider}]`] = () => run(provider, models[provider])));

each("openai_chat_plain", ALL, async (provider, model) => {
  const reply = await openai.chat.completions.create({ model, messages: HELLO, max_tokens: 16 });
  answers(provider, reply.choices[0].message.content);
});
each("openai_chat_stream", ALL, async (provider, model) => {
  let text = "";
  for await (const chunk of await openai.chat.completions.create({ model, messages: HELLO, max_tokens: 16, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  answers(provider, text);
});
each("openai_chat_tools_plain", CAPABLE, async (_, model) => {
  const reply = await openai.chat.completions.create({ model, messages: HELLO, tools: [TOOL] });
  const { tool_calls } = reply.choices[0].message;
  assert.deepEqual(
    tool_calls.map((call) => JSON.parse(call.function.arguments).city),
    ["Ulm", "Bonn"],
  );
  const results = tool_calls.map((call) => ({ role: "tool", tool_call_id: call.id, content: "7" }));
  const messages = [...HELLO, { role: "assistant", tool_calls }, ...results];
  const next = await openai.chat.completions.create({ model, messages, tools: [TOOL] });
  assert.equal(next.choices[0].message.content, "7 degrees");
});
each("openai_chat_tools", CAPABLE, async (_, model) => {
  const reply = await openai.chat.completions.stream({ model, messages: HELLO, tools: [TOOL] }).finalChatCompletion();
  assert.deepEqual(
    reply.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments).city),
    ["Ulm", "Bonn"],
  );
});
each("openai_chat_structured", CAPABLE, async (_, model) => {
  const response_format = { type: "json_schema", json_schema: { name: "ticket", strict: true, schema: SCHEMA } };
  const reply = await openai.chat.completions.parse({ model, messages: HELLO, response_format });
  assert.deepEqual(JSON.parse(reply.choices[0].message.content), { topic: "hi", urgent: false });
});
each("openai_responses_stream", ALL, async (provider, model) => {
  const response = await openai.responses.stream({ model, input: "Say hi.", max_output_tokens: 16 }).finalResponse();
  answers(provider, response.output_text);
});
each("openai_responses_plain", ALL, async (provider, model) => {
  const response = await openai.responses.create({ model, input: "Say hi.", max_output_tokens: 16 });
  answers(provider, response.output_text);
});
each("openai_responses_tools", CAPABLE, async (_, model) => {
  const tools = [{ type: "function", name: "get_weather", parameters: CITY, strict: true }];
  const cities = (response) => response.output.map((call) => [call.type, JSON.parse(call.arguments).city]);
  const expected = [["function_call", "Ulm"], ["function_call", "Bonn"]];
  const response = await openai.responses.create({ model, input: "Weather?", tools });
  assert.deepEqual(cities(response), expected);
  assert.deepEqual(cities(await openai.responses.stream({ model, input: "Weather?", tools }).finalResponse()), expected);
  const results = response.output.map((call) => ({ type: "function_call_output", call_id: call.call_id, output: "7" }));
  const input = [{ role: "user", content: "Weather?" }, ...response.output, ...results];
  assert.equal((await openai.responses.create({ model, input, tools })).output_text, "7 degrees");
});
each("openai_responses_structured", CAPABLE, async (_, model) => {
  const format = { type: "json_schema", name: "ticket", strict: true, schema: SCHEMA };
  const response = await openai.responses.parse({ model, input: "Say hi.", text: { format } });
  assert.deepEqual(response.output_parsed, { topic: "hi", urgent: false });
});
each("openai_embeddings", ["openai", "azure", "gemini", "row"], async (_, model) => {
  const reply = await openai.embeddings.create({ model, input: "a" });
  assert.deepEqual(Array.from(reply.data[0].embedding), [0.5, -1.25, 2]);
});
each("openai_azure", ALL, async (provider, model) => {
  const reply = await azure.chat.completions.create({ model, messages: HELLO, max_tokens: 16 });
  answers(provider, reply.choices[0].message.content);
});
each("openai_azure_stream", ALL, async (provider, model) => {
  let text = "";
  for await (const chunk of await azure.chat.completions.create({ model, messages: HELLO, max_tokens: 16, stream: true }))
    text += chunk.choices[0]?.delta?.content ?? "";
  answers(provider, text);
});
each("openai_azure_tools", CAPABLE, async (_, model) => {
  const cities = (reply) => reply.choices[0].message.tool_calls.map((call) => JSON.parse(call.function.arguments).city);
  assert.deepEqual(cities(await azure.chat.completions.create({ model, messages: HELLO, tools: [TOOL] })), ["Ulm", "Bonn"]);
  const streamed = await azure.chat.completions.stream({ model, messages: HELLO, tools: [TOOL] }).finalChatCompletion();
  assert.deepEqual(cities(streamed), ["Ulm", "Bonn"]);
});
each("openai_azure_structured", CAPABLE, async (_, model) => {
  const response_format = { type: "json_schema", json_schema: { name: "ticket", strict: true, schema: SCHEMA } };
  const reply = await azure.chat.completions.parse({ model, messages: HELLO, response_format });
  assert.deepEqual(reply.choices[0].message.parsed, { topic: "hi", urgent: false });
});
each("anthropic_plain", ALL, async (provider, model) => {
  const message = await anthropic.messages.create({ model, max_tokens: 16, messages: HELLO });
  answers(provider, message.content[0].text);
});
each("anthropic_stream", ALL, async (provider, model) => {
  const message = await anthropic.messages.stream({ model, max_tokens: 16, messages: HELLO }).finalMessage();
  answers(provider, message.content[0].text);
  assert.ok(message.usage.output_tokens > 0);
});
each("anthropic_tools", CAPABLE, async (_, model) => {
  const tools = [{ name: "get_weather", input_schema: CITY }];
  const message = await anthropic.messages.stream({ model, max_tokens: 16, messages: HELLO, tools }).finalMessage();
  assert.deepEqual(
    message.content.map((block) => block.input.city),
    ["Ulm", "Bonn"],
  );
});
each("anthropic_structured", CAPABLE, async (_, model) => {
  const output_config = { format: { type: "json_schema", schema: SCHEMA } };
  const message = await anthropic.messages.create({ model, max_tokens: 16, messages: HELLO, output_config });
  assert.deepEqual(JSON.parse(message.content[0].text), { topic: "hi", urgent: false });
});
// The local model answers for itself: a word of a list, so that it comes to an end.
const KIND = { ...CITY, properties: { city: { enum: ["Ulm", "Bonn"] } } };
const isCity = (call) => assert.ok(["Ulm", "Bonn"].includes(JSON.parse(call.function.arguments).city));
each("openai_local_tools", ["local"], async (_, model) => {
  const tools = [{ type: "function", function: { name: "get_weather", parameters: KIND, strict: true } }];
  const ask = { model, messages: HELLO, tools, tool_choice: "required", parallel_tool_calls: false, max_tokens: 100 };
  for (const client of [openai, azure]) {
    const reply = await client.chat.completions.create(ask);
    assert.equal(reply.choices[0].finish_reason, "tool_calls");
    isCity(reply.choices[0].message.tool_calls[0]);
    isCity((await client.chat.completions.stream(ask).finalChatCompletion()).choices[0].message.tool_calls[0]);
  }
});
each("openai_local_structured", ["local"], async (_, model) => {
  const schema = { ...SCHEMA, properties: { topic: { enum: ["hi", "bye"] }, urgent: { type: "boolean" } } };
  const response_format = { type: "json_schema", json_schema: { name: "ticket", strict: true, schema } };
  const reply = await openai.chat.completions.parse({ model, messages: HELLO, response_format });
  assert.deepEqual(Object.keys(reply.choices[0].message.parsed), ["topic", "urgent"]);
});
each("anthropic_local_tools", ["local"], async (_, model) => {
  const tools = [{ name: "get_weather", input_schema: KIND }];
  const ask = { model, max_tokens: 100, messages: HELLO, tools, tool_choice: { type: "any", disable_parallel_tool_use: true } };
  const message = await anthropic.messages.stream(ask).finalMessage();
  assert.ok(["Ulm", "Bonn"].includes(message.content[0].input.city));
});

if (listing) {
  console.log(JSON.stringify(Object.keys(cases)));
} else {
  const results = {};
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run();
      results[name] = null;
    } catch (error) {
      results[name] = String(error?.stack ?? error);
    }
  }
  console.log(JSON.stringify(results));
}
