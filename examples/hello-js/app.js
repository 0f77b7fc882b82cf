// Says hello. `/ask?<url>` asks another server, which must stand in [network] egress.

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const url = new URL(request.url);
  if (url.pathname === "/ask") {
    return ask(decodeURIComponent(url.search.slice(1)));
  }
  return new Response(`hello from JavaScript at ${url.pathname}\n`);
}

async function ask(url) {
  try {
    const answer = await fetch(url);
    return new Response(answer.body, { status: answer.status });
  } catch (error) {
    return new Response(`not reached: ${error}\n`, { status: 502 });
  }
}
