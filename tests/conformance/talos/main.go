// Reads machine configurations and META's network key as Talos does: talos MACHINE.yaml|meta-network.yaml...
//
// Says what is wrong with them and exits with 1. Nothing of Talos 1.14's own documents is known here.
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cosi-project/runtime/pkg/state"
	"github.com/cosi-project/runtime/pkg/state/impl/inmem"
	"github.com/cosi-project/runtime/pkg/state/impl/namespaced"
	"github.com/siderolabs/talos/pkg/machinery/config/configloader"
	"github.com/siderolabs/talos/pkg/machinery/config/validation"
	"github.com/siderolabs/talos/pkg/machinery/resources/network"
	"go.yaml.in/yaml/v4"
)

// mode is how a machine was started: `metal` by PXE or the raw image, `cloud` for nocloud.
type mode struct {
	name    string
	install bool
}

func (m mode) String() string        { return m.name }
func (m mode) RequiresInstall() bool { return m.install }
func (mode) InContainer() bool       { return false }

// machine is what a booting Talos asks of its configuration, and what talosctl asks.
func machine(path string) error {
	config, err := configloader.NewFromFile(path)
	if err != nil {
		return err
	}
	for _, m := range []mode{{"metal", true}, {"cloud", false}} {
		resources := state.WrapCore(namespaced.NewState(inmem.Build))
		warnings, err := config.Validate(m, validation.WithStrict(), validation.WithLocal())
		if err != nil {
			return fmt.Errorf("mode %s: %w", m, err)
		}
		more, err := config.RuntimeValidate(context.Background(), resources, m)
		if err != nil {
			return fmt.Errorf("mode %s, at run time: %w", m, err)
		}
		if warnings = append(warnings, more...); len(warnings) > 0 {
			return fmt.Errorf("mode %s: warnings: %q", m, warnings)
		}
	}
	if !config.CompleteForBoot() {
		return fmt.Errorf("it is not complete: Talos would stay in maintenance mode")
	}
	return nil
}

func meta(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	return decoder.Decode(&network.PlatformConfigSpec{})
}

func main() {
	code := 0
	for _, path := range os.Args[1:] {
		read := machine
		if filepath.Base(path) == "meta-network.yaml" {
			read = meta
		}
		if err := read(path); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			code = 1
		}
	}
	os.Exit(code)
}
