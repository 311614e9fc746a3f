// Accepts connections at a port, and tells each client the address that the standard library names.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	listener, err := net.Listen("tcp", ":"+os.Args[1])
	if err != nil {
		panic(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		host, _, _ := net.SplitHostPort(connection.RemoteAddr().String())
		fmt.Fprintln(connection, host)
		connection.Close()
	}
}
