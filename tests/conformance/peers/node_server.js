// A server that reads requests with Node's parser (llhttp), and answers each with what it read. With the argument "lenient" it
// takes what Node takes where insecureHTTPParser is set.
const http = require('http');

const insecureHTTPParser = process.argv[2] === 'lenient';
const server = http.createServer({ insecureHTTPParser, maxHeaderSize: 1 << 20 }, (request, response) => {
  const parts = [];
  request.on('data', (part) => parts.push(part));
  request.on('end', () => {
    const body = Buffer.concat(parts).toString('hex');
    const said = JSON.stringify({ method: request.method, target: request.url, body });
    response.setHeader('X-Said', said);
    response.end();
  });
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
