// Reads Ignition documents with Ignition's own parser: every specification that it knows.
// Prints what it complains about, warnings too, and fails if it would refuse one.
package main

import (
	"fmt"
	"os"

	"github.com/coreos/ignition/v2/config"
)

func main() {
	refused := false
	for _, path := range os.Args[1:] {
		raw, err := os.ReadFile(path)
		if err == nil {
			_, report, parsed := config.Parse(raw)
			fmt.Fprint(os.Stderr, report.String())
			err = parsed
			refused = refused || report.IsFatal()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			refused = true
		}
	}
	if refused {
		os.Exit(1)
	}
}
