// What each client is asked to do, and how it reports: one JSON line on stdout. See ../python/task.py.
import { readFileSync } from "node:fs";
import { z } from "zod";

export const HELLO = "Say hello in one short sentence.";
export const WEATHER = "What is the weather in Paris?";
export const PERSON = "Ada is a 36 years old mathematician. Who is it about?";
export const MAX_TOKENS = 48;
export const Person = z.object({ name: z.string().max(40), age: z.number().int().min(0).max(150) });
export const City = z.object({ city: z.string() });

/** `SCRIPT BASE_URL MODEL TASK`; without arguments, the tasks that there are. */
export async function run(name, tasks) {
  if (process.argv.length === 2) {
    console.log(JSON.stringify(Object.keys(tasks).sort()));
    return;
  }
  const [baseURL, model, task] = process.argv.slice(2);
  const manifest = new URL(`./node_modules/${name}/package.json`, import.meta.url);
  const { version } = JSON.parse(readFileSync(manifest, "utf8"));
  console.log(JSON.stringify({ version, result: await tasks[task](baseURL, model) }));
}
