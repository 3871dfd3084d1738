// OpenAI's client for Node.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { HELLO, MAX_TOKENS, PERSON, Person, WEATHER, run } from "./task.mjs";

const client = (baseURL) => new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const callingWeather = (model) => ({
  model, messages: asked(WEATHER), max_tokens: 200, temperature: 0, tool_choice: "required",
  tools: [{ type: "function", function: { name: "get_weather", parameters } }],
});
const calls = (answer) => answer.choices[0].message.tool_calls.map((call) => call.function);

await run("openai", {
  async chat(baseURL, model) {
    const answer = await client(baseURL).chat.completions.create({ model, messages: asked(HELLO), max_tokens: MAX_TOKENS });
    return answer.choices[0].message.content;
  },
  async stream(baseURL, model) {
    const pieces = [];
    const helper = client(baseURL).chat.completions.stream({ model, messages: asked(HELLO), max_tokens: MAX_TOKENS });
    for await (const chunk of helper) pieces.push(chunk.choices[0]?.delta?.content ?? "");
    return pieces;
  },
  async responses(baseURL, model) {
    const input = { model, input: HELLO, max_output_tokens: MAX_TOKENS };
    const first = await client(baseURL).responses.create(input);
    const pieces = [first.output_text];
    for await (const event of await client(baseURL).responses.create({ ...input, previous_response_id: first.id, stream: true })) {
      if (event.type === "response.output_text.delta") pieces.push(event.delta);
    }
    return pieces.join("");
  },
  async tools(baseURL, model) {
    return calls(await client(baseURL).chat.completions.create(callingWeather(model)));
  },
  async tools_streamed(baseURL, model) {
    return calls(await client(baseURL).chat.completions.stream(callingWeather(model)).finalChatCompletion());
  },
  async structured(baseURL, model) {
    const answer = await client(baseURL).chat.completions.parse({
      model, messages: asked(PERSON), max_tokens: 200, temperature: 0, response_format: zodResponseFormat(Person, "person"),
    });
    return answer.choices[0].message.parsed;
  },
});
