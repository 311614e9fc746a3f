// Accepts connections at a port, and tells each client the address that the standard library names.
import java.net.ServerSocket;
import java.net.Socket;

public class Server {
    public static void main(String[] args) throws Exception {
        try (ServerSocket listener = new ServerSocket(Integer.parseInt(args[0]))) {
            for (;;) {
                try (Socket connection = listener.accept()) {
                    String client = connection.getInetAddress().getHostAddress() + "\n";
                    connection.getOutputStream().write(client.getBytes());
                }
            }
        }
    }
}
