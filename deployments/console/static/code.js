// A request as curl and as Python, against the server itself.

export function curl(url, path, body, key) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  const header = key ? ` \\\n  -H "authorization: Bearer $DLP_API_KEY"` : "";
  return `curl -s ${url}${path} \\\n  -H 'content-type: application/json'${header} \\\n  -d '${json}'\n`;
}

export function python(url, path, { dlp, ...body }, key) {
  const chat = path.endsWith("chat/completions");
  const fields = Object.entries(body).filter(([name]) => name !== "stream").map(([name, value]) => `    ${name}=${literal(value)},\n`);
  if (dlp) fields.push(`    extra_body=${literal({ dlp })},\n`);
  return `${key ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(`${url}/v1`)}, api_key=${key ? 'os.environ["DLP_API_KEY"]' : '"none"'})
reply = client.${chat ? "chat.completions" : "completions"}.create(
${fields.join("")})
print(reply.choices[0].${chat ? "message.content" : "text"})
print(reply.dlp["spans"])
`;
}

function literal(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, part]) => `${literal(name)}: ${literal(part)}`).join(", ")}}`;
  return JSON.stringify(value);
}
