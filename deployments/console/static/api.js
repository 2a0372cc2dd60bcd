// The server's API, by way of the console (/api/...), and the console's own answers.

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
  }
}

export async function get(path) {
  return answerOf(await fetch(path, { headers: { accept: "application/json" } }));
}

export async function post(path, body) {
  return answerOf(await fetch(path, request(body)));
}

function request(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

async function answerOf(response) {
  if (!response.ok) throw await errorOf(response);
  return response.json();
}

async function errorOf(response) {
  const text = await response.text();
  try {
    return new ApiError(response.status, JSON.parse(text).error);
  } catch {
    return new ApiError(response.status, { message: text || `status ${response.status}`, code: "http_error" });
  }
}

/** The chunks of a streamed answer. `opened(headers)` is called before the first. Throws ApiError, also for an error in the stream. */
export async function* stream(path, body, { signal, opened }) {
  const response = await fetch(path, request(body, signal));
  if (!response.ok) throw await errorOf(response);
  opened(response.headers);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let done = false;
  while (true) {
    const { value, done: ended } = await reader.read();
    if (ended) break;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      if (event === "data: [DONE]") { done = true; continue; }
      const chunk = JSON.parse(event.slice(6));
      if (chunk.error) throw new ApiError(response.status, chunk.error);
      yield chunk;
    }
  }
  if (!done) throw new ApiError(response.status, { message: "the connection ended before the answer did", code: "cut" });
}

/** Every evaluation there is, oldest first: of the bank's store, which is the admin's, and of the folder --reports. */
export async function evaluations() {
  const [folder, store] = await Promise.all([get("/console/reports"), can.evaluations ? get("/api/v1/bank/evaluations") : { data: [], unreadable: [] }]);
  const found = new Map([...store.data, ...folder.results].map((one) => [`${one.bank.version} ${one.suite.digest} ${one.created}`, one]));
  return {
    sources: [can.evaluations && "the bank's store", folder.folder].filter(Boolean),
    results: [...found.values()].sort((a, b) => Date.parse(a.created) - Date.parse(b.created)),
    gates: folder.gates,
    unreadable: [...store.unreadable, ...folder.unreadable],
  };
}

/** What this server and this console can do, found out once and again when the bank changes. */
export const can = { admin: false, versions: false, evaluations: false, canary: false, shadow: false, pinBank: false, stage: false, feedback: false };

export async function findOut(state) {
  const described = await get("/api/openapi.json").catch(() => ({ paths: {} }));
  const has = (path) => path in (described.paths ?? {});
  const fields = (schema) => described.components?.schemas?.[schema]?.properties ?? {};
  can.admin = state.admin;
  can.versions = state.admin && has("/v1/bank/versions");
  can.evaluations = state.admin && has("/v1/bank/evaluations");
  can.canary = state.admin && has("/v1/bank/canary");
  can.shadow = state.admin && has("/v1/bank/shadow");
  can.pinBank = "bank" in fields("DLPOptions");
  can.stage = state.admin && "stage" in fields("PublishBank");
  can.feedback = has("/v1/feedback");
}
