// Accepts connections at a port, and tells each client the address that the standard library names.
require('net')
  .createServer((connection) => connection.end(connection.remoteAddress + '\n'))
  .listen(Number(process.argv[2]), '::');
