// The Vercel AI SDK with its provider for OpenAI-compatible servers; /v1/responses with its provider for OpenAI.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { City, HELLO, MAX_TOKENS, PERSON, Person, WEATHER, run } from "./task.mjs";

const served = (baseURL, model) =>
  createOpenAICompatible({ name: "anaphora", baseURL, apiKey: "none", supportsStructuredOutputs: true })(model);

await run("ai", {
  async chat(baseURL, model) {
    return (await generateText({ model: served(baseURL, model), prompt: HELLO, maxOutputTokens: MAX_TOKENS, maxRetries: 0 })).text;
  },
  async stream(baseURL, model) {
    const pieces = [];
    const streamed = streamText({ model: served(baseURL, model), prompt: HELLO, maxOutputTokens: MAX_TOKENS, maxRetries: 0 });
    for await (const piece of streamed.textStream) pieces.push(piece);
    return pieces;
  },
  async responses(baseURL, model) {
    const stored = createOpenAI({ baseURL, apiKey: "none" }).responses(model);
    return (await generateText({ model: stored, prompt: HELLO, maxOutputTokens: MAX_TOKENS, maxRetries: 0 })).text;
  },
  async tools(baseURL, model) {
    const weather = tool({ description: "The weather in a city.", inputSchema: City });
    const answer = await generateText({
      model: served(baseURL, model), prompt: WEATHER, maxOutputTokens: 200, temperature: 0, maxRetries: 0,
      tools: { get_weather: weather }, toolChoice: "required",
    });
    return answer.toolCalls.map((call) => ({ name: call.toolName, arguments: call.input }));
  },
  async tools_streamed(baseURL, model) {
    const weather = tool({ description: "The weather in a city.", inputSchema: City });
    const streamed = streamText({
      model: served(baseURL, model), prompt: WEATHER, maxOutputTokens: 200, temperature: 0, maxRetries: 0,
      tools: { get_weather: weather }, toolChoice: "required",
    });
    return (await streamed.toolCalls).map((call) => ({ name: call.toolName, arguments: call.input }));
  },
  async structured(baseURL, model) {
    return (await generateObject({ model: served(baseURL, model), prompt: PERSON, schema: Person, maxOutputTokens: 200, temperature: 0, maxRetries: 0 })).object;
  },
});
