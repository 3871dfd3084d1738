/* The server's API. The key lives in this tab's sessionStorage and in the Authorization header, nowhere else. */

const KEY = "anaphora-key";

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Tells `keyneeded` when the server answers 401. */
export const notices = new EventTarget();

/** The response, if it is a success. Throws ApiError, or an AbortError. */
async function ask(path, { body = null, accept = "application/json", signal = null } = {}) {
  const headers = { Accept: accept };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  const response = await fetch(path, {
    method: body === null ? "GET" : "POST",
    body: body === null ? null : JSON.stringify(body),
    headers,
    signal,
    credentials: "omit",
  });
  if (response.ok) return response;
  if (response.status === 401) notices.dispatchEvent(new Event("keyneeded"));
  throw new ApiError(response.status, await reason(response));
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

export async function json(path, options) {
  return (await ask(path, options)).json();
}

/** What each server-sent event holds, until `[DONE]` or the end. Throws as `ask`, and ApiError for an error event. */
export async function* events(path, options) {
  const response = await ask(path, { ...options, accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffered = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      buffered += value;
      const frames = buffered.split("\n\n");
      buffered = frames.pop();
      for (const frame of frames) {
        if (!frame.startsWith("data: ")) continue;
        if (frame === "data: [DONE]") return;
        const event = JSON.parse(frame.slice("data: ".length));
        if (event.error) throw new ApiError(500, event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let model = null;

/** The name of the one model that is served. */
export async function modelName() {
  model ??= (await json("/v1/models")).data[0].id;
  return model;
}
