// OpenAI's client for JavaScript: asks in several ways and prints what came as JSON.
import OpenAI from "openai";

const [baseURL, brokenURL] = process.argv.slice(2);
const options = { apiKey: "none", maxRetries: 0, timeout: 60000 };
const client = new OpenAI({ baseURL, ...options });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "What is the capital of France?" }];
const asked = { model, messages, max_tokens: 12, temperature: 1, seed: 5, ignore_eos: true };

const answer = await client.chat.completions.create(asked);
let streamed = "";
let usage = null;
const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
for await (const chunk of stream) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}

const { data, response } = await client.completions
  .create({ model, prompt: ["The quick", "Count from"], max_tokens: 4 })
  .withResponse();
const embedding = (await client.embeddings.create({ model, input: "one" })).data[0].embedding;
const plain = (await client.embeddings.create({ model, input: "one", encoding_format: "float" })).data[0].embedding;

const left = await client.chat.completions.create({ ...asked, max_tokens: 1500, stream: true });
for await (const _ of left) break;

async function failure(ask) {
  try {
    await ask();
    return "none";
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null };
  }
}
const refused = await failure(() => client.chat.completions.create({ ...asked, temperature: -1 }));
const broken = await failure(async () => {
  const faulty = new OpenAI({ baseURL: brokenURL, ...options });
  for await (const _ of await faulty.chat.completions.create({ model: "scripted", messages, stream: true }));
});

console.log(
  JSON.stringify({
    whole: answer.choices[0].message.content,
    streamed,
    usage: usage.completion_tokens,
    completions: data.choices.length,
    requestId: response.headers.get("x-request-id"),
    embedding: Array.from(embedding),
    plain,
    refused,
    broken,
  }),
);
